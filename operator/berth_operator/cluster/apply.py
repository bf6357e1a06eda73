"""How does the cluster get what we rendered?  Server-side apply of children that differ, deletion of those not wanted.

A child is applied when it is missing, when the hash of what we render has changed, or when somebody has changed a field
that we render.  One that fails is left alone for a growing while; the others go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Final, TypeVar

from berth_operator.api.names import MANAGED_BY, MANAGED_BY_LABEL, POOL_LABEL, RENDER_HASH_ANNOTATION
from berth_operator.cluster.attempts import Attempts, ForeignObjectError, Result
from berth_operator.cluster.drift import lost_fields
from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.observe import Child, child_decoder
from berth_operator.cluster.reflector import Reflector
from berth_operator.cluster.resources import TEMPLATE_FIELDS, Object, Resource, child_resource

log = logging.getLogger(__name__)

_CONCURRENCY: Final = 16
_SHOWN: Final = 3
_CONFLICT_SECONDS: Final = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Waits before each attempt of a write that conflicts: a new Deployment's controller writes its status in a burst."""

T = TypeVar("T")

_Id = tuple[str, str, str]
"""(kind, namespace, name)"""


@dataclass(slots=True)
class Applier:
    """Writes children.  `live` are the reflectors of the children's kinds."""

    kube: Kube
    live: Mapping[Resource, Reflector[Child]]
    attempts: Attempts = field(default_factory=Attempts)
    _clean: dict[_Id, tuple[str, str]] = field(default_factory=dict)
    """State (render hash, managed fields) in which a child was last found to be as rendered."""
    _unsettled: dict[_Id, tuple[str, frozenset[str]]] = field(default_factory=dict)
    """By render hash, the fields that the cluster took from us in the very act of applying."""

    async def write(self, apply: Sequence[Object], delete: Sequence[Child], *, more: bool = False) -> Counter[Result]:
        """Apply what differs, then delete.  One object's failure is counted, not raised; NotLeaderError is raised.

        `more`: there is more that is wanted than this, so nothing else is forgotten.
        """
        slots = asyncio.Semaphore(_CONCURRENCY)

        async def attempt(key: _Id, write: Callable[[], Awaitable[bool]]) -> Result:
            async with slots:
                return await self.attempts.attempt(key, "{} {}/{}".format(*key), write)

        differing = [(m, why) for m in apply if (why := self.difference(m, self._child(m)))]
        results = await asyncio.gather(*(attempt(_id(m), partial(self._apply, m, why)) for m, why in differing))
        results += await asyncio.gather(*(attempt(child.key, partial(self._delete, child)) for child in delete))
        if not more:
            self._keep_only({_id(m) for m in apply} | {child.key for child in delete})
        return Counter(results)

    def difference(self, manifest: Object, child: Child | None) -> str | None:
        """Why a child has to be applied, for people; None when it is as rendered."""
        if child is None:
            return "it did not exist"
        key, rendered = child.key, _hash(manifest)
        if child.render_hash != rendered:
            return "what we render has changed"
        state = (rendered, child.managed_fields)
        if self._clean.get(key) == state:
            return None
        lost = lost_fields(manifest, child.managed_fields)
        # What an admission webhook takes from us at every apply, applying again will not bring back.
        known, unsettled = self._unsettled.get(key, ("", frozenset()))
        if known == rendered:
            lost -= unsettled
        if not lost:
            self._clean[key] = state
            return None
        return f"somebody changed {_some(lost)}"

    async def _apply(self, manifest: Object, why: str) -> bool:
        resource, child = child_resource(manifest), self._child(manifest)
        template = TEMPLATE_FIELDS.get(resource.kind)
        if template and template not in manifest["spec"]:
            manifest = await self._with_its_template(resource, manifest)
        if child is None or child.owner_uid != _owner_uid(manifest):
            await self._check_ours(resource, manifest)
        if child is None:
            answer = await self.kube.apply(resource, manifest)
        else:
            answer = await self._unless_changed(child, lambda at: self.kube.apply(resource, _as_of(manifest, at)))
        if resource in self.live:  # its kind may have gone meanwhile
            self.live[resource].note(answer)
        after = child_decoder(resource)(answer)
        unsettled = lost_fields(manifest, after.managed_fields)
        self._unsettled[after.key] = (_hash(manifest), unsettled)
        log.info("applied %s: %s", after, why)
        if unsettled:
            log.warning("%s: the cluster does not keep what we set: %s", after, _some(unsettled))
        return True

    async def _with_its_template(self, resource: Resource, manifest: Object) -> Object:
        """A workload rendered without a pod template keeps the one that it has.  Raises ApiError (404)."""
        metadata, field = manifest["metadata"], TEMPLATE_FIELDS[resource.kind]
        there = await self.kube.get(resource, metadata["namespace"], metadata["name"])
        if there is None:
            raise ApiError(HTTPStatus.NOT_FOUND, "it is gone, and was to keep its pod template")
        return manifest | {"spec": manifest["spec"] | {field: there["spec"][field]}}

    async def _delete(self, child: Child) -> bool:
        where = child.resource, child.namespace, child.name
        await self._unless_changed(child, lambda at: self.kube.delete(*where, uid=child.uid, resource_version=at))
        if child.resource in self.live:
            self.live[child.resource].forget((child.namespace, child.name))
        log.info("deleted %s: it is no longer wanted", child)
        return True

    async def _unless_changed(self, child: Child, write: Callable[[str], Awaitable[T]]) -> T:
        """`write`, given a resource version, on condition that the object is as it was when the write was decided upon.

        What changes all the time, such as counts of ready replicas, does not stand against it.  What somebody has
        changed of what we render does: another leader, whose write came before this late one.  Raises ApiError (409).
        """
        at = child.resource_version
        for seconds in _CONFLICT_SECONDS:
            await asyncio.sleep(seconds)
            try:
                return await write(at)
            except ApiError as error:
                if error.status != HTTPStatus.CONFLICT:
                    raise
            now = await self.kube.get(child.resource, child.namespace, child.name)
            if now is None or not _same(child, seen := child_decoder(child.resource)(now)):
                break
            at = seen.resource_version
        raise ApiError(HTTPStatus.CONFLICT, f"{child} has changed since this write was decided upon")

    async def _check_ours(self, resource: Resource, manifest: Object) -> None:
        """The name may be taken by an object that we do not follow, because it does not carry our labels."""
        metadata = manifest["metadata"]
        there = await self.kube.get(resource, metadata["namespace"], metadata["name"])
        if there is None:
            return
        owner = next((o for o in there["metadata"].get("ownerReferences", ()) if o.get("controller")), None)
        if owner is not None and owner["uid"] == _owner_uid(manifest):
            return
        found = child_decoder(resource)(there)
        ours = there["metadata"].get("labels", {}).get(MANAGED_BY_LABEL) == MANAGED_BY or found.managed_fields
        if owner is None and ours and found.pool in ("", metadata["labels"][POOL_LABEL]):
            return  # an orphan, or stripped of its labels by hand
        holder = f"controlled by {owner['kind']} {owner['name']} (uid {owner['uid']})" if owner else "not made by Berth"
        raise ForeignObjectError(
            f"an object of this name exists, {holder}: give the pool another name or remove that object"
        )

    def _child(self, manifest: Object) -> Child | None:
        metadata, followed = manifest["metadata"], self.live.get(child_resource(manifest))
        return None if followed is None else followed.get((metadata["namespace"], metadata["name"]))

    def _keep_only(self, keys: set[_Id]) -> None:
        self.attempts.keep_only(keys)
        for key in self._clean.keys() - keys:
            del self._clean[key]
        for key in self._unsettled.keys() - keys:
            del self._unsettled[key]


def _id(manifest: Object) -> _Id:
    metadata = manifest["metadata"]
    return manifest["kind"], metadata["namespace"], metadata["name"]


def _hash(manifest: Object) -> str:
    return str(manifest["metadata"]["annotations"][RENDER_HASH_ANNOTATION])


def _as_of(manifest: Object, resource_version: str) -> Object:
    return manifest | {"metadata": manifest["metadata"] | {"resourceVersion": resource_version}}


def _same(one: Child, other: Child) -> bool:
    """Whether two looks at a child show the same object, rendered by the same decision."""
    return (one.uid, one.owner_uid, one.render_hash, one.managed_fields, one.deleting) == (
        other.uid,
        other.owner_uid,
        other.render_hash,
        other.managed_fields,
        other.deleting,
    )


def _owner_uid(manifest: Object) -> str | None:
    owners = manifest["metadata"].get("ownerReferences", ())
    return next((o["uid"] for o in owners if o.get("controller")), None)


def _some(paths: frozenset[str]) -> str:
    names = sorted(paths)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
