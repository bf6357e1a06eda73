"""What do all our kinds share?  Camel-case names, object metadata, conditions, tolerations."""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from berth_operator.api.names import API_VERSION

API_DEFAULT: Final = "x-berth-default"
"""Schema extra of the rare field whose default the API server fills in; all others are resolved by `resolve`."""

_FIELDS_SET: Final[dict[frozenset[str], set[str]]] = {}


class ApiModel(BaseModel):
    """Base of every API object: camelCase outside, snake_case inside, immutable.

    Unknown fields are ignored, so that an operator can read objects of a newer CRD; callers that read files
    pass `extra="forbid"` to `model_validate`.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, frozen=True, extra="ignore"
    )

    def model_post_init(self, _context: Any, /) -> None:
        """Which fields were set is the same of thousands of objects: kept once (a set takes more than a candidate)."""
        fields = self.__pydantic_fields_set__
        object.__setattr__(self, "__pydantic_fields_set__", _FIELDS_SET.setdefault(frozenset(fields), fields))

    def to_api(self) -> dict[str, Any]:
        """The object as JSON data under its API names, without unset fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ObjectMeta(ApiModel):
    """The part of Kubernetes object metadata that we read."""

    name: str = ""
    namespace: str | None = None
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class Resource(ApiModel):
    """A custom resource as read from the API server or from a file."""

    api_version: Literal["berth.dev/v1alpha1"] = API_VERSION
    metadata: ObjectMeta = Field(default_factory=ObjectMeta)


class Toleration(ApiModel):
    """A Kubernetes toleration."""

    key: str | None = Field(None, max_length=316)
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = Field(None, max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Condition(ApiModel):
    """A condition by the Kubernetes API conventions (metav1.Condition)."""

    type: str = Field(max_length=316)
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(max_length=1024)
    message: str = Field("", max_length=32768)
    observed_generation: int | None = Field(None, json_schema_extra={"format": "int64"})
    last_transition_time: str = Field(json_schema_extra={"format": "date-time"})


Facts = tuple[Literal["True", "False", "Unknown"], str, str]
"""status, reason, message of a condition."""


LIST_SET: Final[dict[str, Any]] = {"x-kubernetes-list-type": "set"}
"""Schema extras of a list in which nothing is twice."""


def list_map(*keys: str) -> dict[str, Any]:
    """Schema extras of a list whose items are told apart by `keys` (so that appliers can own single items)."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


def cel(*rules: tuple[str, str]) -> dict[str, Any]:
    """Schema extras with CEL rules, each (rule, message)."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]}
