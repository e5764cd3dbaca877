{{/* One egress rule, or nothing: in Kubernetes an empty `to` means everywhere. */}}
{{- define "backburn.egress" -}}
{{- if and .to .ports }}
- to: {{- toYaml .to | nindent 4 }}
  ports:
    {{- range .ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}
{{- end }}

{{- define "backburn.dns" -}}
{{- with .Values.networkPolicy.dns }}
{{- if and .to .ports }}
- to: {{- toYaml .to | nindent 4 }}
  ports:
    {{- range .ports }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "backburn.steps" -}}
matchLabels: {app.kubernetes.io/part-of: backburn}
matchExpressions:
  - {key: backburn.io/step, operator: In, values: [{{ join ", " . }}]}
{{- end }}
