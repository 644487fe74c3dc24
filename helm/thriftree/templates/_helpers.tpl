{{- define "thriftree.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "thriftree.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "thriftree.labels" -}}
{{ include "thriftree.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "thriftree.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "thriftree.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "thriftree.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default (printf "%s%s" .Chart.AppVersion (ternary "-cuda" "" (gt (int .Values.gpu.count) 0))) .Values.image.tag }}
{{- end -}}
{{- end }}

{{- /* The Secret with the keys file; empty: none. */ -}}
{{- define "thriftree.keysSecret" -}}
{{- if .Values.keys.externalSecret.enabled -}}
{{- default (printf "%s-keys" (include "thriftree.fullname" .)) .Values.keys.secret.name -}}
{{- else -}}
{{- .Values.keys.secret.name -}}
{{- end -}}
{{- end }}

{{- /* Volumes that one pod can mount at a time: "true" or empty. */ -}}
{{- define "thriftree.oneMount" -}}
{{- if or .Values.keys.database.enabled (and .Values.cache.persistent (ne .Values.cache.accessMode "ReadWriteMany")) -}}
true
{{- end -}}
{{- end }}
