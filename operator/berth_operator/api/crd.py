"""Which CRDs do the pydantic models stand for?  Structural OpenAPI schemas with CEL rules and printer columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from berth_operator.api.hardware_class import HardwareClass
from berth_operator.api.inference_pool import InferencePool
from berth_operator.api.meta import API_DEFAULT, Resource
from berth_operator.api.names import GROUP, VERSION
from berth_operator.api.serving_profile import ServingProfile

_KEPT = frozenset(
    {
        "type", "format", "description", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum",
        "minItems", "maxItems", "maxProperties", "required", "properties", "items", "additionalProperties",
        "x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
        "x-kubernetes-preserve-unknown-fields",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    json_path: str
    type: str = "string"
    description: str = ""

    def to_api(self) -> dict[str, Any]:
        column = {"name": self.name, "type": self.type, "jsonPath": self.json_path}
        return column | ({"description": self.description} if self.description else {})


@dataclass(frozen=True, slots=True)
class _Kind:
    model: type[Resource]
    plural: str
    namespaced: bool
    short_names: tuple[str, ...]
    columns: tuple[_Column, ...]
    status: bool
    scale: Mapping[str, str] | None = None
    """The scale subresource's JSON paths."""


_AGE = _Column("Age", ".metadata.creationTimestamp", "date")
_KINDS = (
    _Kind(
        InferencePool,
        "inferencepools",
        namespaced=True,
        short_names=("bpool",),
        status=True,
        scale={
            "specReplicasPath": ".spec.workload.demand.concurrentSessions",
            "statusReplicasPath": ".status.concurrentSessions",
            "labelSelectorPath": ".status.selector",
        },
        columns=(
            _Column("Model", ".spec.model.name"),
            _Column("Class", ".spec.workload.class"),
            _Column("Ready", ".status.ready", description="Ready and wanted replicas"),
            _Column("Placement", ".status.placement"),
            _Column("USD/h", ".status.cost.usdPerHour", description="Whole nodes"),
            _Column("Saved", ".status.saved", description="Against the cheapest GPU-only plan"),
            _Column("Status", '.status.conditions[?(@.type=="Ready")].reason'),
            _AGE,
        ),
    ),
    _Kind(
        HardwareClass,
        "hardwareclasses",
        namespaced=False,
        short_names=("bhw",),
        status=True,
        columns=(
            _Column("Kind", ".spec.kind"),
            _Column("Chip", ".spec.chip"),
            _Column("Memory-GiB", ".spec.memoryGiB", "integer"),
            _Column("GB/s", ".spec.memoryBandwidthGBps", "integer"),
            _Column("On-Demand", '.spec.capacity[?(@.type=="OnDemand")].usdPerHour', description="USD per hour"),
            _Column("Spot", '.spec.capacity[?(@.type=="Spot")].usdPerHour', description="USD per hour"),
            _Column("In-Use", ".status.nodesInUse", "integer", "Nodes that hold workers"),
            _Column("Status", '.status.conditions[?(@.type=="Available")].reason'),
            _AGE,
        ),
    ),
    _Kind(
        ServingProfile,
        "servingprofiles",
        namespaced=False,
        short_names=("bprofile",),
        status=False,
        columns=(
            _Column("Model", ".spec.model"),
            _Column("Quantization", ".spec.quantization"),
            _Column("Hardware", ".spec.hardwareClass"),
            _Column("Runtime", ".spec.runtime"),
            _Column("Method", ".spec.provenance.method"),
            _AGE,
        ),
    ),
)


class _CrdSchema(GenerateJsonSchema):
    """Pydantic's JSON schema without the titles, which an API server has no use for."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never: titles only repeat the field's name."""
        return False


def _structural(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema as a structural one: references inlined, `X | None` as X, no defaults but API_DEFAULT's."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[-1]]
        return _structural({**target, **{k: v for k, v in schema.items() if k != "$ref"}}, definitions)
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        if len(options) != 1:
            raise ValueError(f"a CRD field must have one type, found {schema['anyOf']}")
        return _structural({**options[0], **{k: v for k, v in schema.items() if k != "anyOf"}}, definitions)
    out = {key: value for key, value in schema.items() if key in _KEPT}
    if API_DEFAULT in schema:
        out["default"] = schema[API_DEFAULT]
    if "const" in schema:
        out.update(type="string", enum=[schema["const"]])
    if "exclusiveMinimum" in schema:
        raise ValueError("write ge= instead of gt=: CRDs of v1 have no numeric exclusiveMinimum")
    if schema.get("type") == "integer" and "format" not in out:
        out["format"] = "int32" if schema.get("maximum", 0) < 2**31 else "int64"
    if "properties" in schema:
        out["properties"] = {name: _structural(sub, definitions) for name, sub in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        out["items"] = _structural(schema["items"], definitions)
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        out["additionalProperties"] = _structural(extra, definitions)
    else:
        out.pop("additionalProperties", None)
    if out.get("type") == "object" and "maxLength" in out:
        out["maxProperties"] = out.pop("maxLength")
    return out


def _schema(model: type[Resource]) -> dict[str, Any]:
    full = model.model_json_schema(by_alias=True, schema_generator=_CrdSchema)
    schema = _structural(full, full.get("$defs", {}))
    properties = schema["properties"]
    properties["apiVersion"] = {"type": "string"}
    properties["kind"] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    schema["required"] = ["spec"]
    if model is InferencePool:  # its Services carry its name, its Deployments <name>-<placement hash>
        schema["x-kubernetes-validations"] = [
            {
                "rule": "size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                "message": "metadata.name also names Services and Deployments: at most 40 lower-case letters, digits"
                " and '-', starting with a letter",
            }
        ]
    return schema


def crd(kind: _Kind) -> dict[str, Any]:
    """One CustomResourceDefinition as Kubernetes JSON data."""
    name = kind.model.__name__
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [column.to_api() for column in kind.columns],
        "schema": {"openAPIV3Schema": _schema(kind.model)},
    }
    if kind.status:
        version["subresources"] = {"status": {}} | ({"scale": dict(kind.scale)} if kind.scale else {})
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "kind": name,
                "listKind": f"{name}List",
                "plural": kind.plural,
                "singular": name.lower(),
                "shortNames": list(kind.short_names),
                "categories": ["berth"],
            },
            "versions": [version],
        },
    }


def crds() -> dict[str, dict[str, Any]]:
    """All CRDs, by file name."""
    return {f"{GROUP}_{kind.plural}.yaml": crd(kind) for kind in _KINDS}
