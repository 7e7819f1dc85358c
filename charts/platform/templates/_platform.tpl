{{- define "platform.storeEndpoint" -}}
{{- if .Values.store.enabled }}http://kinoflow-store.{{ .Release.Namespace }}:9000{{ else }}{{ .Values.store.endpoint }}{{ end }}
{{- end }}

{{/* Environment of a client of the store; secrets are named, never rendered. */}}
{{- define "platform.storeEnvironment" -}}
- {name: AWS_ENDPOINT_URL_S3, value: {{ include "platform.storeEndpoint" . | quote }}}
- {name: MLFLOW_S3_ENDPOINT_URL, value: {{ include "platform.storeEndpoint" . | quote }}}
- {name: AWS_DEFAULT_REGION, value: {{ .Values.store.region | quote }}}
- {name: AWS_REQUEST_CHECKSUM_CALCULATION, value: when_required}
- {name: AWS_RESPONSE_CHECKSUM_VALIDATION, value: when_required}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ .Values.storeSecret }}, key: accessKeyId}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ .Values.storeSecret }}, key: secretAccessKey}}
{{- end }}

{{/* libpq reads user and password from the environment, so neither is part of an address or an argument. */}}
{{- define "platform.databaseEnvironment" -}}
{{- with .Values.mlflow.database.postgresql }}
- name: PGUSER
  valueFrom: {secretKeyRef: {name: {{ .secret }}, key: username}}
- name: PGPASSWORD
  valueFrom: {secretKeyRef: {name: {{ .secret }}, key: password}}
- {name: PGSSLMODE, value: {{ .sslMode }}}
{{- if hasPrefix "verify" .sslMode }}
- {name: PGSSLROOTCERT, value: {{ ternary "/database-authority/ca.crt" "system" (ne .caConfigMap "") }}}
{{- end }}
{{- end }}
{{- end }}

{{/* Fetches a copy: onto SQLite's volume, or beside pg_restore. */}}
{{- define "platform.restoreContainer" -}}
{{- $sqlite := eq .Values.mlflow.database.kind "sqlite" -}}
- name: restore
  image: {{ .Values.mlflow.image }}
  command: [python, /scripts/restore.py]
  args:
    - {{ .Values.backup.destination }}
    - {{ ternary "/data/mlflow.db" "/scratch/mlflow.dump" $sqlite }}
    - {{ .Values.backup.restoreFrom | quote }}
  env:
    - {name: HOME, value: /scratch}
    - {name: TMPDIR, value: /scratch}
    {{- include "platform.storeEnvironment" . | nindent 4 }}
  resources: {{- toYaml .Values.backup.resources | nindent 4 }}
  securityContext: {{- include "kinoflow.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: scratch, mountPath: /scratch}
    - {name: scripts, mountPath: /scripts, readOnly: true}
    {{- if $sqlite }}
    - {name: data, mountPath: /data}
    {{- end }}
{{- end }}

{{/* Names a client can reach MLflow under; with a port and without, as the Host header may hold either. */}}
{{- define "platform.allowedHosts" -}}
{{- $ns := .Release.Namespace -}}
{{- $names := list "mlflow" (printf "mlflow.%s" $ns) (printf "mlflow.%s.svc" $ns) (printf "mlflow.%s.svc.%s" $ns .Values.clusterDomain) "localhost" "127.0.0.1" -}}
{{- $hosts := list -}}
{{- range $names }}{{ $hosts = concat $hosts (list . (printf "%s:*" .)) }}{{ end -}}
{{- if .Values.mlflow.ingress.enabled }}{{ $hosts = append $hosts .Values.mlflow.ingress.host }}{{ end -}}
{{- concat $hosts .Values.mlflow.allowedHosts | uniq | join "," -}}
{{- end }}

{{- define "platform.allowedOrigins" -}}
{{- $origins := .Values.mlflow.allowedOrigins -}}
{{- with .Values.mlflow.ingress }}
{{- if .enabled }}{{ $origins = append $origins (printf "%s://%s" (ternary "https" "http" (ne .tlsSecret "")) .host) }}{{ end -}}
{{- end -}}
{{- concat $origins (list "http://localhost:5000" "http://127.0.0.1:5000") | uniq | join "," -}}
{{- end }}

{{/* DNS: the cluster's own and its cache on each node, which has a fixed link-local address. */}}
{{- define "platform.dnsEgress" -}}
- to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
    - ipBlock: {cidr: 169.254.20.10/32}
  ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- end }}

{{- define "platform.externalEgress" -}}
{{- with .Values.networkPolicy.externalCidrs }}
- to:
{{- range . }}
    - ipBlock: {cidr: {{ . | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "platform.clientNamespaces" -}}
- namespaceSelector: {matchLabels: {{ toJson .Values.clientNamespaceLabels }}}
{{- end }}
