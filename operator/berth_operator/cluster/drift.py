"""Has somebody changed what we render?  A live child's managed fields against the manifest that we would apply.

Server-side apply records, on the object itself, every field that is ours with the value we gave it.  Whoever changes or
removes such a field takes it from that record.  So a rendered field that is missing from the record is a difference,
and nothing else is: values that the API server fills in, rewrites to a canonical form ("0.5" to "500m") or drops
(`false`, `{}`) never look like one.  The record's format is FieldsV1 of structured-merge-diff: `f:NAME` a field,
`k:{...}` a list item by its key, `v:VALUE` a member of a set, `.` the item itself; no children: owned as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

_IDENTITY: Final = frozenset({"apiVersion", "kind"})
_NAMES: Final = frozenset({"name", "namespace", "uid"})


def lost_fields(manifest: Mapping[str, Any], managed_fields: str) -> frozenset[str]:
    """Paths of rendered fields that are no longer ours on the live object; `managed_fields` is JSON of fieldsV1.

    Empty: nothing that we render was changed by anybody.
    """
    if not managed_fields:
        return frozenset({"everything"})
    rendered = {k: v for k, v in manifest.items() if k not in _IDENTITY}
    rendered["metadata"] = {k: v for k, v in manifest["metadata"].items() if k not in _NAMES}
    return frozenset(_lost(rendered, json.loads(managed_fields), ""))


def _lost(rendered: Mapping[str, Any], owned: Mapping[str, Any], path: str) -> Iterator[str]:
    for name, value in rendered.items():
        where = f"{path}.{name}" if path else name
        node = owned.get(f"f:{name}")
        if node is None:
            # An empty map that is merged field by field leaves no record of itself.
            if value not in ({}, None):
                yield where
        elif not node or value is None:
            continue  # a leaf, or atomic: owned as a whole
        elif isinstance(value, Mapping):
            yield from _lost(value, node, where)
        elif isinstance(value, list):
            yield from _lost_items(value, node, where)


def _lost_items(items: list[Any], owned: Mapping[str, Any], path: str) -> Iterator[str]:
    keyed = [(json.loads(k[2:]), node) for k, node in owned.items() if k.startswith("k:")]
    members = [json.loads(k[2:]) for k in owned if k.startswith("v:")]
    for item in items:
        if not isinstance(item, Mapping):
            if item not in members:
                yield f"{path}[{item}]"
            continue
        # A key may hold values that the API server filled in (a port's protocol): compare what we wrote of it.
        match = [(key, node) for key, node in keyed if all(item.get(k, v) == v for k, v in key.items())]
        if not match:
            yield f"{path}[{item.get('name', '?')}]"
            continue
        key, node = match[0]
        if node:  # else an atomic item, owned as a whole
            yield from _lost(item, node, f"{path}[{','.join(str(value) for value in key.values())}]")
