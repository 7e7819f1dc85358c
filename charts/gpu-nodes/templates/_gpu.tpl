{{/* Where a pod of a GPU node runs and how it reaches the driver; takes the list (root, node selector). */}}
{{- define "gpu.placement" -}}
{{- $root := index . 0 -}}
priorityClassName: system-node-critical
enableServiceLinks: false
{{- with $root.Values.runtimeClass.name }}
runtimeClassName: {{ . }}
{{- end }}
nodeSelector: {{- toYaml (index . 1) | nindent 2 }}
{{- with $root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "kinoflow.pullSecrets" $root }}
{{- end }}

{{/* Root with a closed file system and no capability: for sockets and folders of the node that belong to root. */}}
{{- define "gpu.rootSecurity" -}}
runAsUser: 0
runAsNonRoot: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* The same with SYS_ADMIN, which NVML wants for MIG devices and profiling; Kubernetes refuses it beside "no escalation". */}}
{{- define "gpu.administratorSecurity" -}}
runAsUser: 0
runAsNonRoot: false
allowPrivilegeEscalation: true
readOnlyRootFilesystem: true
capabilities: {drop: [ALL], add: [SYS_ADMIN]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "gpu.pluginSecurity" -}}
{{- if eq .Values.mig.strategy "none" }}{{ include "gpu.rootSecurity" . }}{{ else }}{{ include "gpu.administratorSecurity" . }}{{ end }}
{{- end }}

{{- define "gpu.driverEnvironment" -}}
- {name: NVIDIA_VISIBLE_DEVICES, value: all}
- {name: NVIDIA_DRIVER_CAPABILITIES, value: "compute,utility"}
{{- if ne .Values.mig.strategy "none" }}
- {name: NVIDIA_MIG_MONITOR_DEVICES, value: all}
{{- end }}
{{- end }}
