"""Who asked the API server for what?"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
"""

_WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True)
class AuditEvent:
    """One request that the API server answered (or, for a watch, began to answer)."""

    user: str
    verb: str
    resource: str  # plural, with its group where it has one: deployments.apps; the path for what is no resource
    subresource: str
    namespace: str
    name: str
    code: int
    stage: str
    time: str
    raw: dict[str, Any] = field(repr=False, compare=False)

    @property
    def is_write(self) -> bool:
        """Whether it asked for a change, granted or not."""
        return self.verb in _WRITES


def read_events(log: Path, start: int = 0) -> list[AuditEvent]:
    """The events from byte ``start`` of the log on, oldest first; a line still being written is left out."""
    if not log.exists():
        return []
    with log.open("rb") as stream:
        stream.seek(start)
        text = stream.read()
    complete = text[: text.rfind(b"\n") + 1]
    return [_event(json.loads(line)) for line in complete.splitlines()]


def _event(raw: dict[str, Any]) -> AuditEvent:
    target = raw.get("objectRef", {})
    group = target.get("apiGroup")
    resource = target.get("resource", raw.get("requestURI", ""))
    return AuditEvent(
        user=raw.get("user", {}).get("username", ""),
        verb=raw.get("verb", ""),
        resource=f"{resource}.{group}" if group else resource,
        subresource=target.get("subresource", ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=raw.get("responseStatus", {}).get("code", 0),
        stage=raw.get("stage", ""),
        time=raw.get("stageTimestamp", ""),
        raw=raw,
    )
