{{- define "thriftree.container" -}}
image: {{ include "thriftree.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  {{- with .Values.model }}
  - {{ . | quote }}
  {{- end }}
  - --config=/etc/thriftree/thriftree.yaml
  - --host=0.0.0.0
  - --port=8000
  - --drain-timeout={{ .Values.drainSeconds }}
  {{- $parallel := int (default .Values.gpu.count .Values.gpu.tensorParallelSize) }}
  {{- if gt $parallel 1 }}
  - --tensor-parallel-size={{ $parallel }}
  {{- end }}
  {{- range .Values.engines }}
  - {{ printf "--engine=%s" . | quote }}
  {{- end }}
  {{- range .Values.extraArgs }}
  - {{ . | quote }}
  {{- end }}
{{- include "thriftree.environment" . }}
ports:
  - name: http
    containerPort: 8000
# /health answers while the model loads and while answers drain: only a process that hangs is restarted.
startupProbe:
  httpGet:
    path: /health
    port: http
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /health
    port: http
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /ready
    port: http
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
# Load balancers need some seconds to see that the pod is leaving; until then it takes requests.
lifecycle:
  preStop:
    exec:
      command: ["sleep", {{ .Values.preStopSeconds | quote }}]
resources:
  {{- include "thriftree.resources" . | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - name: settings
    mountPath: /etc/thriftree
    readOnly: true
  {{- if include "thriftree.keysSecret" . }}
  - name: keys
    mountPath: /etc/thriftree-keys
    readOnly: true
  {{- end }}
  - name: cache
    mountPath: /home/thriftree/.cache
  - name: data
    mountPath: /data
  - name: tmp
    mountPath: /tmp
  - name: shm
    mountPath: /dev/shm
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "thriftree.environment" }}
env:
  - name: THRIFTREE_LOG_FILE
    value: "-"
  {{- if .Values.keys.database.enabled }}
  - name: THRIFTREE_AUTH__DATABASE
    value: /data/keys.db
  {{- end }}
  {{- if include "thriftree.keysSecret" . }}
  - name: THRIFTREE_AUTH__KEYS_FILE
    value: /etc/thriftree-keys/{{ .Values.keys.secret.key }}
  {{- end }}
  {{- if .Values.redisSecret.name }}
  - name: THRIFTREE_QUOTAS__REDIS
    valueFrom:
      secretKeyRef:
        name: {{ .Values.redisSecret.name }}
        key: {{ .Values.redisSecret.key }}
  {{- else }}
  - name: THRIFTREE_QUOTAS__SNAPSHOT
    value: /data/quotas.db
  {{- end }}
  {{- if .Values.engineKeySecret.name }}
  - name: THRIFTREE_REMOTE__KEY
    valueFrom:
      secretKeyRef:
        name: {{ .Values.engineKeySecret.name }}
        key: {{ .Values.engineKeySecret.key }}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- /* The values' own, with the GPUs among the limits. */ -}}
{{- define "thriftree.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if gt (int .Values.gpu.count) 0 -}}
{{- $resources = mergeOverwrite $resources (dict "limits" (dict .Values.gpu.resource (int .Values.gpu.count))) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}
