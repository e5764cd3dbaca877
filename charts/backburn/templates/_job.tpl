{{/*
A Job that runs one of the chart's scripts in the tools image.
root; name; component: of its labels; account: suffix of its service account; events, weight: when Helm runs it;
args: script and arguments; resources; deadline; retries; labels: further labels of its pod;
volumes, mounts, env: lists of more of each.
*/}}
{{- define "backburn.job" -}}
{{- $root := .root -}}
apiVersion: batch/v1
kind: Job
metadata:
  {{- include "backburn.metadata" (dict "root" $root "component" .component "name" .name) | nindent 2 }}
  annotations:
    helm.sh/hook: {{ .events }}
    helm.sh/hook-weight: {{ .weight | default 0 | quote }}
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
    helm.sh/hook-output-log-policy: hook-failed
spec:
  backoffLimit: {{ .retries | default 0 }}
  activeDeadlineSeconds: {{ .deadline }}
  ttlSecondsAfterFinished: 3600  # Helm forgets hooks: one that failed goes by itself
  template:
    metadata:
      labels:
        {{- include "backburn.labels" (dict "root" $root "component" .component) | nindent 8 }}
        sidecar.istio.io/inject: "false"  # a sidecar would never end
        {{- with .labels }}{{ toYaml . | nindent 8 }}{{ end }}
    spec:
      restartPolicy: Never
      serviceAccountName: {{ include "backburn.name" $root }}-{{ .account }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with $root.Values.imagePullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext: {{- include "backburn.podSecurity" 10001 | nindent 8 }}
      containers:
        - name: {{ .component }}
          image: {{ include "backburn.image" $root.Values.images.tools | quote }}
          imagePullPolicy: {{ $root.Values.images.tools.pullPolicy }}
          command: [python]
          args: {{- toYaml .args | nindent 12 }}
          env:
            - {name: HOME, value: /tmp}
            - {name: PYTHONDONTWRITEBYTECODE, value: "1"}
            - {name: PYTHONUNBUFFERED, value: "1"}
            {{- with .env }}{{ toYaml . | nindent 12 }}{{ end }}
          resources: {{- toYaml .resources | nindent 12 }}
          securityContext: {{- include "backburn.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: scripts, mountPath: /etc/backburn/scripts, readOnly: true}
            {{- with .mounts }}{{ toYaml . | nindent 12 }}{{ end }}
      volumes:
        - {name: tmp, emptyDir: {sizeLimit: 1Gi}}
        - {name: scripts, configMap: {name: {{ include "backburn.name" $root }}-scripts}}
        {{- with .volumes }}{{ toYaml . | nindent 8 }}{{ end }}
{{- end }}

{{- define "backburn.caVolume" -}}
- {name: ca, configMap: {name: {{ .Values.kfp.caConfigMap }}, items: [{key: ca.crt, path: ca.crt}]}}
{{- end }}

{{- define "backburn.caMount" -}}
- {name: ca, mountPath: /etc/backburn/ca, readOnly: true}
{{- end }}
