"""Would the API server take this object?  The CRD's own CEL rules and list keys, checked without an API server."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import cel

from berth_operator.api.crd import crds

Schema = Mapping[str, Any]


@functools.cache
def schema_of(kind: str) -> Schema:
    """The OpenAPI schema of one of our kinds.  Raises KeyError for another."""
    return _schemas()[kind]


def violations(kind: str, body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Field path and message of every rule that an object breaks.  Its fields must already have the right types."""
    yield from _walk(schema_of(kind), body, "")


def schema_at(kind: str, path: tuple[str | int, ...]) -> Schema:
    """The schema of a field by its path; empty where the path leads out of the schema."""
    schema = schema_of(kind)
    for part in path:
        schema = schema.get("items", {}) if isinstance(part, int) else _property(schema, part)
    return schema


@functools.cache
def _schemas() -> dict[str, Schema]:
    return {
        crd["spec"]["names"]["kind"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for crd in crds().values()
    }


def _property(schema: Schema, name: str) -> Schema:
    found: Schema = schema.get("properties", {}).get(name, schema.get("additionalProperties", {}))
    return found


def _walk(schema: Schema, value: Any, path: str) -> Iterator[tuple[str, str]]:
    if value is None:
        return
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"] and cel.evaluate(rule["rule"], {"self": value}) is not True:
            yield path, rule["message"]
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _walk(_property(schema, name), child, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        yield from _repeated(schema, value, path)
        for index, child in enumerate(value):
            yield from _walk(schema.get("items", {}), child, f"{path}[{index}]")


def _repeated(schema: Schema, items: list[Any], path: str) -> Iterator[tuple[str, str]]:
    """List items that an API server takes for one and the same."""
    kind, keys = schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys", ())
    if kind not in ("map", "set"):
        return
    seen = set()
    for index, item in enumerate(items):
        identity = tuple(item.get(key) for key in keys) if kind == "map" else (item,)
        if identity in seen:
            named = ", ".join(f"{k} {v}" for k, v in zip(keys, identity, strict=True)) if keys else repr(item)
            yield f"{path}[{index}]", f"{named} is there twice: each may be there once"
        seen.add(identity)
