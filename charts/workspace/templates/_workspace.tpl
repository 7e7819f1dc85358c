{{/* Port of an address: the one it names, else its scheme's. */}}
{{- define "workspace.port" -}}
{{- $host := regexReplaceAll "^https?://" . "" -}}
{{- if contains ":" $host }}{{ splitList ":" $host | last }}{{ else if hasPrefix "https" . }}443{{ else }}80{{ end -}}
{{- end }}

{{/* "yes" when an address is a service in the platform's namespace; takes the list (address, namespace). */}}
{{- define "workspace.inPlatform" -}}
{{- $host := index . 0 | regexFind "//[^:/]+" | trimPrefix "//" -}}
{{- if regexMatch (printf "^[a-z0-9-]+\\.%s(\\.svc(\\..+)?)?$" (index . 1)) $host }}yes{{ end -}}
{{- end }}

{{/* One rule to a service: takes the list (address, cidrs, namespace). The port on the pod may differ from the service's, so within the cluster the namespace and the pod's labels decide. */}}
{{- define "workspace.egressTo" -}}
{{- $component := index . 3 -}}
{{- if include "workspace.inPlatform" (list (index . 0) (index . 2)) }}
- to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ index . 2 }}}}
      podSelector: {matchLabels: {app.kubernetes.io/part-of: kinoflow, app.kubernetes.io/component: {{ $component }}}}
{{- else }}
- to:
    {{- range index . 1 }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  ports: [{port: {{ include "workspace.port" (index . 0) }}}]
{{- end }}
{{- end }}

{{/* Quantity of memory in MiB. */}}
{{- define "workspace.mib" -}}
{{- if hasSuffix "Ti" . }}{{ mul (trimSuffix "Ti" . | int64) 1048576 }}{{ else if hasSuffix "Gi" . }}{{ mul (trimSuffix "Gi" . | int64) 1024 }}{{ else }}{{ trimSuffix "Mi" . | int64 }}{{ end -}}
{{- end }}

{{/* CPU in thousandths. */}}
{{- define "workspace.millicpu" -}}
{{- if hasSuffix "m" . }}{{ trimSuffix "m" . | int64 }}{{ else }}{{ mul (. | int64) 1000 }}{{ end -}}
{{- end }}
