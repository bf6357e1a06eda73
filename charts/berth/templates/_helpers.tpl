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
app.kubernetes.io/name: {{ include "berth.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "berth.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "berth.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: berth
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
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
