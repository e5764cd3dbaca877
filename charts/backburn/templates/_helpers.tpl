{{- define "backburn.name" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "backburn.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "backburn.labels" -}}
{{ include "backburn.selector" . }}
app.kubernetes.io/part-of: backburn
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "backburn.metadata" -}}
name: {{ include "backburn.name" .root }}-{{ .name | default .component }}
namespace: {{ .root.Release.Namespace }}
labels: {{- include "backburn.labels" . | nindent 2 }}
{{- end }}

{{- define "backburn.image" -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end }}
{{- end }}

{{- define "backburn.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "backburn.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "backburn.mlflowUri" -}}
{{- if .Values.tracking.uri -}}
{{ .Values.tracking.uri }}
{{- else if .Values.mlflow.enabled -}}
http://{{ include "backburn.name" . }}-mlflow.{{ .Release.Namespace }}.svc.cluster.local:5000
{{- end }}
{{- end }}

{{- define "backburn.judgeUrl" -}}
http://{{ include "backburn.name" . }}-judge.{{ .Release.Namespace }}.svc.cluster.local:8000
{{- end }}

{{- define "backburn.hooked" -}}
{{- if and .Values.hook.enabled (or .Values.pipelines .Values.schedules) }}true{{ end }}
{{- end }}
