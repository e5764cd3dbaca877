{{/* What the hook does, as JSON: argument lists of Backburn's command, so that no shell reads them. */}}
{{- define "backburn.server" -}}
{{- $list := list "--endpoint" .Values.kfp.endpoint -}}
{{- if .Values.kfp.multiUser }}{{ $list = concat $list (list "--namespace" .Release.Namespace) }}{{ end -}}
{{- if .Values.kfp.caConfigMap }}{{ $list = concat $list (list "--ca-cert" "/etc/backburn/ca/ca.crt") }}{{ end -}}
{{- toJson $list -}}
{{- end }}

{{- define "backburn.recipe" -}}
{{- $recipe := .recipe -}}
{{- if hasKey .root.Values.recipes $recipe }}{{ $recipe = printf "/etc/backburn/recipes/%s.yaml" $recipe }}{{ end -}}
{{- $sets := list (printf "compute.image=%s" (include "backburn.image" .root.Values.images.task | toJson)) -}}
{{- $sets = append $sets (printf "compute.tools_image=%s" (include "backburn.image" .root.Values.images.tools | toJson)) -}}
{{- $sets = append $sets (printf "compute.secret_name=%s" (toJson .root.Values.secret.existingSecret)) -}}
{{- with include "backburn.mlflowUri" .root }}{{ $sets = append $sets (printf "tracking.uri=%s" (toJson .)) }}{{ end -}}
{{- range $key, $value := .root.Values.gate }}{{ $sets = append $sets (printf "gate.%s=%s" $key (toJson $value)) }}{{ end -}}
{{- $list := list "--recipe" $recipe -}}
{{- range concat $sets (.set | default list) }}{{ $list = concat $list (list "--set" .) }}{{ end -}}
{{- toJson $list -}}
{{- end }}

{{- define "backburn.hookPlan" -}}
{{- $root := . -}}
{{- $server := include "backburn.server" . | fromJsonArray -}}
{{- $commands := list -}}
{{- range .Values.pipelines -}}
{{- $recipe := include "backburn.recipe" (dict "root" $root "recipe" .recipe "set" .set) | fromJsonArray -}}
{{- $commands = append $commands (concat (list "upload") $recipe $server) -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.schedules -}}
{{- if has .name $names }}{{ fail (printf "schedules: the name %q is used twice; schedules need different names" .name) }}{{ end -}}
{{- $names = append $names .name -}}
{{- $recipe := include "backburn.recipe" (dict "root" $root "recipe" .recipe "set" .set) | fromJsonArray -}}
{{- $command := concat (list "schedule" .pipeline .name "--cron" .cron) $recipe $server -}}
{{- with .experiment }}{{ $command = concat $command (list "--experiment" .) }}{{ end -}}
{{- with .maxConcurrency }}{{ $command = concat $command (list "--max-concurrency" (toString .)) }}{{ end -}}
{{- if .catchUp }}{{ $command = append $command "--catchup" }}{{ end -}}
{{- if hasKey . "paused" }}{{ $command = append $command (ternary "--paused" "--enabled" .paused) }}{{ end -}}
{{- if eq .pipeline "audit" -}}
{{- if .anyKey }}{{ $command = append $command "--any-key" -}}
{{- else if $root.Values.publicKey }}{{ $command = concat $command (list "--key" "/etc/backburn/scripts/backburn.pem") -}}
{{- else }}{{ fail (printf "schedules: the audit %q needs to know whose signature counts: set publicKey to the PEM that `backburn signing-key --public` wrote, or its anyKey to true" .name) }}{{ end -}}
{{- with .model }}{{ $command = concat $command (list "--model" .) }}{{ end -}}
{{- if .reportOnly }}{{ $command = append $command "--report-only" }}{{ end -}}
{{- else if or .model .anyKey .reportOnly }}{{ fail (printf "schedules: %q hardens; model, anyKey and reportOnly are for audits" .name) }}{{ end -}}
{{- $commands = append $commands $command -}}
{{- end -}}
{{- toPrettyJson (dict "commands" $commands "schedules" $names "server" $server) -}}
{{- end }}

{{/* What `helm test` looks at. */}}
{{- define "backburn.servicesPlan" -}}
{{- $keys := concat (list "BACKBURN_SEAL_KEY" "BACKBURN_SIGNING_KEY") .Values.secret.alsoRequired | uniq -}}
{{- $answers := list (dict "name" "the KFP API" "url" (printf "%s/apis/v2beta1/healthz" (trimSuffix "/" .Values.kfp.endpoint)) "status" 200 "setting" "kfp.endpoint") -}}
{{- $answers = append $answers (dict "name" "the object store" "url" .Values.objectStore.endpoint "setting" "objectStore.endpoint") -}}
{{- with include "backburn.mlflowUri" . }}{{ $answers = append $answers (dict "name" "MLflow" "url" (printf "%s/health" (trimSuffix "/" .)) "status" 200 "setting" "tracking.uri") }}{{ end -}}
{{- if .Values.judge.enabled }}{{ $answers = append $answers (dict "name" "the judge" "url" (printf "%s/health" (include "backburn.judgeUrl" .)) "status" 200 "setting" "judge") }}{{ end -}}
{{- $ca := ternary "/etc/backburn/ca/ca.crt" nil (ne .Values.kfp.caConfigMap "") -}}
{{- toPrettyJson (dict "secret" .Values.secret.existingSecret "keys" $keys "answers" $answers "ca" $ca) -}}
{{- end }}

{{- define "backburn.egressPlan" -}}
{{- $reaches := list (dict "name" "KFP's gRPC API" "address" .Values.kfp.grpc "setting" "networkPolicy.kfp") -}}
{{- $reaches = append $reaches (dict "name" "KFP's metadata store" "address" .Values.kfp.metadata "setting" "networkPolicy.kfpMetadata") -}}
{{- $reaches = append $reaches (dict "name" "the object store" "address" .Values.objectStore.endpoint "setting" "networkPolicy.objectStore") -}}
{{- with include "backburn.mlflowUri" . }}{{ $reaches = append $reaches (dict "name" "MLflow" "address" . "setting" "networkPolicy.mlflow") }}{{ end -}}
{{- if .Values.judge.enabled }}{{ $reaches = append $reaches (dict "name" "the judge" "address" (include "backburn.judgeUrl" .) "setting" "judge") }}{{ end -}}
{{- $reaches = append $reaches (dict "name" "the Kubernetes API" "address" "$(KUBERNETES)" "setting" "networkPolicy.kubernetesApi") -}}
{{- toPrettyJson (dict "reaches" $reaches "forbidden" .Values.test.forbidden) -}}
{{- end }}
