"""What is in the cluster now?  A small list-watch reflector: a read-only mapping that follows one resource.

Each object is decoded once, when it arrives, and only the decoded value is kept; `on_change` is called only when a
decoded value differs, so that a heartbeat or an annotation nobody reads wakes nobody.  A list replaces the content:
what was deleted while we were not watching is gone afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import ChainMap
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Generic, TypeVar

from berth_operator.cluster.kube import PAGE, ApiError, Kube
from berth_operator.cluster.resources import Object, Resource

log = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[str, str]
"""(namespace, name); namespace is empty for cluster-scoped objects."""

_WATCH_SECONDS: Final = (240, 480)  # at random between, so that watches do not all end together
_BACKOFF_SECONDS: Final = (0.5, 10.0)


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    version: int
    value: T


def key_of(item: Object) -> Key:
    """The key of a raw object."""
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _version_of(item: Object) -> int:
    # Resource versions of one resource compare as integers (Kubernetes 1.35 makes it a promise; all before did it).
    return int(item["metadata"]["resourceVersion"])


def _differing(old: Mapping[Key, T], new: Mapping[Key, T]) -> Iterator[Key]:
    for key in old.keys() | new.keys():
        if key not in old or key not in new or old[key] != new[key]:
            yield key


class Reflector(Mapping[Key, T], Generic[T]):
    """Follows one resource, in all namespaces or in some.  `await reflector.run()` until cancelled."""

    def __init__(
        self,
        kube: Kube,
        resource: Resource,
        decode: Callable[[Object], T],
        *,
        namespaces: Sequence[str] = (),
        labels: str = "",
        fields: str = "",
        on_change: Callable[[], None] = lambda: None,
        matters: Callable[[Key], bool] = lambda _key: True,
        page: int = PAGE,
        backoff_s: tuple[float, float] = _BACKOFF_SECONDS,
    ) -> None:
        """`decode` must not raise; `namespaces` empty means all; the server applies selectors `labels` and `fields`.

        `matters`: whether a change of the object of this key is worth a call of `on_change`.  `page`: objects listed at
        once, each decoded before the next page is read.
        """
        self.resource = resource
        self._kube = kube
        self._decode = decode
        self._labels = labels
        self._selected_fields = fields
        self._on_change = on_change
        self._matters = matters
        self._page = page
        self._backoff_s = backoff_s
        self._parts: dict[str, dict[Key, _Entry[T]]] = {scope: {} for scope in namespaces or ("",)}
        parts = list(self._parts.values())
        self._all: Mapping[Key, _Entry[T]] = parts[0] if len(parts) == 1 else ChainMap(*parts)
        self._seen = dict.fromkeys(self._parts, 0)
        """The newest version that listing or watching has told of."""
        self._unlisted = set(self._parts)
        self._synced = asyncio.Event()
        self._told: dict[str, str] = {}

    # The mapping

    def __getitem__(self, key: Key) -> T:
        return self._all[key].value

    def __iter__(self) -> Iterator[Key]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def synced(self) -> bool:
        """Whether the content has been listed at least once, in every namespace followed."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Return once `synced`."""
        await self._synced.wait()

    def note(self, item: Object) -> None:
        """Take in what a write of ours returned, so that the next look sees it before the watch brings it.

        An object that is not here although the watch has come past its version was deleted since: it stays gone.
        """
        for scope, part in self._parts.items():
            if scope not in ("", self._scope_of(item)):
                continue
            if key_of(item) in part or _version_of(item) > self._seen[scope]:
                self._put(part, item)

    def forget(self, key: Key) -> None:
        """Drop an object that we have deleted; if it still lingers, the watch will bring it back."""
        for part in self._parts.values():
            part.pop(key, None)

    # Following

    async def run(self) -> None:
        """Follow for ever.  Lost connections, busy servers and missing CRDs are waited out, never raised."""
        async with asyncio.TaskGroup() as group:
            for scope in self._parts:
                group.create_task(self._follow(scope))

    async def _follow(self, scope: str) -> None:
        version = ""
        delay = self._backoff_s[0]
        while True:
            try:
                if not version:
                    version = await self._list(scope)
                    self._recovered(scope)
                    delay = self._backoff_s[0]
                async for event in self._watch(scope, version):
                    version = event["object"]["metadata"]["resourceVersion"]
                    self._take(scope, event)
                    self._recovered(scope)
                    delay = self._backoff_s[0]
                # The server has ended the watch in its time: go on from the last version.
            except ApiError as error:
                if error.status in (HTTPStatus.GONE, HTTPStatus.NOT_FOUND):
                    version = ""  # too old, or the resource itself went: list again
                if error.status != HTTPStatus.GONE:
                    self._failed(scope, error)
            except Exception:
                log.exception("following %s failed; listing again", self.resource)
                version = ""
            await asyncio.sleep(random.uniform(delay / 2, delay))  # noqa: S311
            delay = min(delay * 2, self._backoff_s[1])

    async def _list(self, scope: str) -> str:
        part, fresh, at = self._parts[scope], {}, ""
        pages = self._kube.pages(
            self.resource, self._namespace(scope), labels=self._labels, fields=self._fields(scope), size=self._page
        )
        async for page in pages:
            for item in page.items:
                key, version = key_of(item), _version_of(item)
                known = part.get(key)
                fresh[key] = known if known and known.version == version else _Entry(version, self._decode(item))
            at = page.resource_version
        old = {key: entry.value for key, entry in part.items()}
        new = {key: entry.value for key, entry in fresh.items()}
        part.clear()
        part.update(fresh)
        self._seen[scope] = int(at)
        first = scope in self._unlisted
        self._unlisted.discard(scope)
        if not self._unlisted:
            self._synced.set()
        if first or any(self._matters(key) for key in _differing(old, new)):
            self._on_change()
        return at

    def _watch(self, scope: str, version: str) -> AsyncIterator[Object]:
        return self._kube.watch(
            self.resource,
            self._namespace(scope),
            labels=self._labels,
            fields=self._fields(scope),
            resource_version=version,
            seconds=random.randint(*_WATCH_SECONDS),  # noqa: S311
        )

    def _take(self, scope: str, event: Object) -> None:
        item, part, seen = event["object"], self._parts[scope], self._seen[scope]
        self._seen[scope] = max(seen, _version_of(item))
        match event["type"]:
            case "ADDED" | "MODIFIED":
                # An event told once more, of an object that has been deleted since, brings it not back.
                news = key_of(item) in part or _version_of(item) > seen
                changed = news and self._put(part, item)
            case "DELETED":
                known = part.get(key_of(item))
                changed = known is not None and known.version <= _version_of(item)
                if changed:
                    del part[key_of(item)]
            case _:  # BOOKMARK: nothing but a newer version to go on from
                changed = False
        if changed and self._matters(key_of(item)):
            self._on_change()

    def _put(self, part: dict[Key, _Entry[T]], item: Object) -> bool:
        """Store unless we know a newer state already; return whether the decoded value is another."""
        key, version = key_of(item), _version_of(item)
        known = part.get(key)
        if known is not None and known.version >= version:
            return False
        entry = _Entry(version, self._decode(item))
        part[key] = entry
        return known is None or known.value != entry.value

    # A followed namespace of a cluster-scoped resource (namespaces themselves) is selected by name.

    def _namespace(self, scope: str) -> str | None:
        return scope if scope and self.resource.namespaced else None

    def _fields(self, scope: str) -> str:
        return f"metadata.name={scope}" if scope and not self.resource.namespaced else self._selected_fields

    def _scope_of(self, item: Object) -> str:
        metadata = item["metadata"]
        return str(metadata.get("namespace", "") if self.resource.namespaced else metadata["name"])

    # One line when it begins to fail, one when it works again

    def _failed(self, scope: str, error: ApiError) -> None:
        where = f"{self.resource} in namespace {scope}" if scope else str(self.resource)
        match error.status:
            case HTTPStatus.NOT_FOUND:
                text = f"{where}: the API server does not serve it: install the CRDs (crds/, or the chart); waiting"
            case HTTPStatus.FORBIDDEN:
                text = f"{where}: RBAC does not let us list and watch it: {error}; waiting for the grant"
            case _:
                text = f"{where}: {error}; trying again"
        known = self._told.get(scope) == str(error.status)
        self._told[scope] = str(error.status)
        log.log(logging.DEBUG if known else logging.WARNING, text)

    def _recovered(self, scope: str) -> None:
        if self._told.pop(scope, None):
            log.info("%s: followed again, %d objects", self.resource, len(self._parts[scope]))
