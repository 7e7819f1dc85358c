{{- define "platform.labels" -}}
app.kubernetes.io/part-of: kinoflow
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "platform.storeEndpoint" -}}
{{- if .Values.store.enabled }}http://kinoflow-store:9000{{ else }}{{ required "store.enabled is false, so store.endpoint must name an S3 store" .Values.store.endpoint }}{{ end }}
{{- end }}
{{- define "platform.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "platform.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
{{- define "platform.storeCredentials" -}}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ .Values.storeSecret }}, key: accessKeyId}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ .Values.storeSecret }}, key: secretAccessKey}}
{{- end }}
