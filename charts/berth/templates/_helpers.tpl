{{- define "berth.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* RELEASE-operator: the release is usually called berth, and its objects then berth-operator. */}}
{{- define "berth.fullname" -}}
{{- default (printf "%s-operator" .Release.Name) .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "berth.serviceAccountName" -}}
{{- default (ternary (include "berth.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{- define "berth.selectorLabels" -}}
app.kubernetes.io/name: {{ include "berth.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{- /* The chart's own labels go before those of the user: selectors and Helm itself count on them. */}}
{{- define "berth.labels" -}}
{{- $labels := include "berth.selectorLabels" . | fromYaml }}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") }}
{{- $_ := set $labels "app.kubernetes.io/version" .Chart.AppVersion }}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .Release.Service }}
{{- $_ := set $labels "app.kubernetes.io/part-of" "berth" }}
{{- merge $labels (default dict .Values.commonLabels) | toYaml }}
{{- end }}

{{- /* Argument: a list of the image's values and the default tag. */}}
{{- define "berth.image" -}}
{{- $image := index . 0 }}
{{- with $image.registry }}{{ . }}/{{ end }}
{{- $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default (index . 1) $image.tag }}{{ end }}
{{- end }}

{{- /* Integrations that are on, as the operator names them. */}}
{{- define "berth.integrations" -}}
{{- $on := list }}
{{- if .Values.integrations.gatewayAPI.enabled }}{{ $on = append $on "gateway-api" }}{{ end }}
{{- if .Values.integrations.inferenceExtension.enabled }}{{ $on = append $on "inference-extension" }}{{ end }}
{{- if .Values.integrations.podMonitor.enabled }}{{ $on = append $on "pod-monitor" }}{{ end }}
{{- if .Values.integrations.karpenter.enabled }}{{ $on = append $on "karpenter" }}{{ end }}
{{- if .Values.integrations.leaderWorkerSet.enabled }}{{ $on = append $on "leader-worker-set" }}{{ end }}
{{- if .Values.integrations.keda.enabled }}{{ $on = append $on "keda" }}{{ end }}
{{- join "," $on }}
{{- end }}

{{- /* What the values tell the operator. */}}
{{- define "berth.env" -}}
- name: BERTH_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: BERTH_IDENTITY
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: BERTH_LEASE_NAME
  value: {{ include "berth.fullname" . }}
{{- with .Values.watchNamespaces }}
- name: BERTH_WATCH_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
- name: BERTH_WORKER_IMAGE
  value: {{ include "berth.image" (list .Values.worker.image .Chart.AppVersion) | quote }}
- name: BERTH_VLLM_IMAGE
  value: {{ include "berth.image" (list .Values.vllm.image "") | quote }}
- name: BERTH_IMAGE_PULL_POLICY
  value: {{ .Values.worker.image.pullPolicy }}
{{- with include "berth.integrations" . }}
- name: BERTH_INTEGRATIONS
  value: {{ . }}
{{- end }}
{{- if .Values.integrations.podMonitor.enabled }}
- name: BERTH_POD_MONITOR_INTERVAL
  value: {{ .Values.metrics.podMonitor.interval }}
{{- with .Values.metrics.podMonitor.labels }}
{{- $pairs := list }}
{{- range $key, $value := . }}{{ $pairs = append $pairs (printf "%s=%s" $key $value) }}{{ end }}
- name: BERTH_POD_MONITOR_LABELS
  value: {{ join "," $pairs | quote }}
{{- end }}
{{- end }}
- name: BERTH_INTERVAL
  value: {{ .Values.planning.interval }}
- name: BERTH_DEBOUNCE
  value: {{ .Values.planning.debounce }}
- name: BERTH_MAX_MOVES
  value: {{ .Values.planning.maxMoves | quote }}
- name: BERTH_SHORTAGE_GRACE
  value: {{ .Values.shortage.grace }}
- name: BERTH_SHORTAGE_BACK_OFF
  value: {{ .Values.shortage.backOff }}
- name: BERTH_SHORTAGE_BACK_OFF_MAX
  value: {{ .Values.shortage.maxBackOff }}
{{- with .Values.prices.configMap }}
- name: BERTH_PRICE_CONFIG_MAP
  value: {{ . | quote }}
{{- end }}
{{- with .Values.prices.aws.region }}
- name: BERTH_AWS_PRICE_REGION
  value: {{ . | quote }}
- name: BERTH_PRICE_INTERVAL
  value: {{ $.Values.prices.aws.interval }}
{{- end }}
- name: BERTH_PRICE_MAX_AGE
  value: {{ .Values.prices.maxAge }}
{{- if .Values.activator.enabled }}
- name: BERTH_ACTIVATOR_ADDRESS
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- end }}
- name: BERTH_LOAD_INTERVAL
  value: {{ .Values.load.interval }}
- name: BERTH_LOAD_STABILIZATION
  value: {{ .Values.load.stabilization }}
- name: BERTH_METRICS_ADDRESS
  value: 0.0.0.0:{{ .Values.metrics.port }}
- name: BERTH_HEALTH_ADDRESS
  value: 0.0.0.0:{{ .Values.health.port }}
- name: BERTH_LOG_LEVEL
  value: {{ .Values.log.level }}
- name: BERTH_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- end }}

{{- /* Rights over namespaced objects: in every namespace, or in each of watchNamespaces. */}}
{{- define "berth.namespacedRules" -}}
- apiGroups: [berth.dev]
  resources: [inferencepools]
  verbs: [list, watch]
- apiGroups: [berth.dev]
  resources: [inferencepools/status]
  verbs: [patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
# To name those that pull at a child's replicas.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list, watch]
{{- if .Values.integrations.gatewayAPI.enabled }}
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes, grpcroutes]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- if .Values.integrations.inferenceExtension.enabled }}
- apiGroups: [inference.networking.k8s.io]
  resources: [inferencepools]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [inference.networking.x-k8s.io]
  resources: [inferenceobjectives]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- if .Values.integrations.podMonitor.enabled }}
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- if .Values.integrations.leaderWorkerSet.enabled }}
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- if .Values.integrations.keda.enabled }}
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
# Workers on nodes that are going away are taken from traffic and ended.
# What was decided about a pool.
- apiGroups: [""]
  resources: [events]
  verbs: [create]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch, delete]
{{- if .Values.activator.enabled }}
# Takes in the clients of a pool that has no worker.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- end }}

{{- define "berth.clusterRules" -}}
- apiGroups: [berth.dev]
  resources: [hardwareclasses, servingprofiles]
  verbs: [list, watch]
- apiGroups: [berth.dev]
  resources: [hardwareclasses/status]
  verbs: [patch]
{{- if not .Values.watchNamespaces }}
# Whether a HardwareClass has a node, or could get one: one node is asked for, by label. And which nodes go away.
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
- apiGroups: [karpenter.sh]
  resources: [nodepools]
  verbs: [list]
{{- end }}
{{- if .Values.integrations.karpenter.enabled }}
# Nodes that Karpenter could not make.
- apiGroups: [karpenter.sh]
  resources: [nodeclaims]
  verbs: [list, watch]
{{- end }}
# Their labels, for namespaceSelector of a HardwareClass.
- apiGroups: [""]
  resources: [namespaces]
  {{- with .Values.watchNamespaces }}
  resourceNames: {{ toJson . }}
  {{- end }}
  verbs: [list, watch]
{{- end }}
