{{- define "thriftree.pod" -}}
serviceAccountName: {{ include "thriftree.serviceAccount" . }}
automountServiceAccountToken: false
# Else a service called thriftree or vllm would set variables with the names of settings (VLLM_PORT).
enableServiceLinks: false
terminationGracePeriodSeconds: {{ add .Values.preStopSeconds .Values.drainSeconds .Values.stopSeconds }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.gpu.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
containers:
  - name: thriftree
    {{- include "thriftree.container" . | nindent 4 }}
volumes:
  {{- include "thriftree.volumes" . | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpread }}
topologySpreadConstraints:
  {{- range . }}
  - maxSkew: {{ .maxSkew }}
    topologyKey: {{ .topologyKey }}
    whenUnsatisfiable: {{ .whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "thriftree.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "thriftree.volumes" -}}
- name: settings
  configMap:
    name: {{ include "thriftree.fullname" . }}
{{- with include "thriftree.keysSecret" . }}
- name: keys
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
- name: cache
  {{- if or .Values.cache.existingClaim .Values.cache.persistent }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-cache" (include "thriftree.fullname" .)) .Values.cache.existingClaim }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.cache.size }}
  {{- end }}
- name: data
  {{- if .Values.keys.database.enabled }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-keys" (include "thriftree.fullname" .)) .Values.keys.database.existingClaim }}
  {{- else }}
  emptyDir: {}
  {{- end }}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.sharedMemory }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
