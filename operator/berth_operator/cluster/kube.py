"""How do we talk to the API server?  A thin asynchronous edge: raw JSON, time limits, bounded retries, one error type.

Configuration, credentials and TLS are kubernetes_asyncio's (service account, kubeconfig, exec plugins); its generated
models are not used, because they would drop fields of newer API versions and cost memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Self

import aiohttp

from berth_operator.api.names import FIELD_MANAGER
from berth_operator.cluster.connection import Configuration, RESTClientObject, config
from berth_operator.cluster.resources import Object, Resource

log = logging.getLogger(__name__)

_RETRIED: Final = frozenset({429, 500, 502, 503, 504})
PAGE: Final = 500
"""Objects that are listed at once."""
_REQUEST_SECONDS: Final = 30.0
# The API server sends every watch a bookmark about once a minute: a longer silence is a dead connection.
_WATCH_SILENCE_SECONDS: Final = 100.0
_APPLY: Final = "application/apply-patch+yaml"
_MERGE_PATCH: Final = "application/merge-patch+json"


class ApiError(Exception):
    """The API server refused, or could not be reached (status 0).  Its text is what a person needs."""

    def __init__(self, status: int, message: str, *, reason: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later without anybody changing anything."""
        return self.status == 0 or self.status in _RETRIED


class NotLeaderError(Exception):
    """A write was held back because this replica does not hold the Lease."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A collection at one resource version."""

    items: list[Object]
    resource_version: str


class Kube:
    """A connection to one API server.  `async with await Kube.connect() as kube: ...`"""

    def __init__(
        self, configuration: Configuration, *, attempts: int = 4, request_seconds: float = _REQUEST_SECONDS
    ) -> None:
        self.configuration = configuration
        self._host = str(configuration.host).rstrip("/")
        self._rest = RESTClientObject(configuration)
        self._attempts = attempts
        self._request_seconds = request_seconds
        self.may_write: Callable[[], bool] = lambda: True
        """Asked just before every attempt of a write of a child or a status; False raises NotLeaderError instead."""
        self.write_seconds: Callable[[], float] = lambda: math.inf
        """How long such an attempt may take: until another replica may lead."""

    @classmethod
    async def connect(cls, kubeconfig: str | None = None) -> Self:
        """Connect with `kubeconfig`, else $KUBECONFIG, else the pod's service account, else ~/.kube/config.

        Raises ApiError (status 0) when none of them is to be had.  Opens no connection yet.
        """
        return cls(await load_configuration(kubeconfig))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection, watches included."""
        await self._rest.close()

    # Reading

    async def list(
        self, resource: Resource, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> Listed:
        """All objects of a collection at one resource version."""
        pages = [page async for page in self.pages(resource, namespace, labels=labels, fields=fields)]
        return Listed([item for page in pages for item in page.items], pages[-1].resource_version)

    async def pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        size: int = PAGE,
    ) -> AsyncIterator[Listed]:
        """All objects of a collection, page by page, every page at the same resource version."""
        query = {"limit": str(size)} | _selectors(labels, fields)
        while True:
            page = await self.request("GET", resource.path(namespace), query=query)
            # Items of a typed list carry neither kind nor apiVersion.
            head = {"apiVersion": resource.api_version, "kind": resource.kind}
            yield Listed([head | item for item in page["items"]], page["metadata"]["resourceVersion"])
            if not (more := page["metadata"].get("continue")):
                return
            query["continue"] = more

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        resource_version: str,
        seconds: int,
    ) -> AsyncIterator[Object]:
        """Events after a resource version, bookmarks included, until the server ends the watch after `seconds`.

        Raises ApiError: 410 when the version is no longer known, 0 when the connection is lost or silent too long.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        } | _selectors(labels, fields)
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_WATCH_SILENCE_SECONDS)
        try:
            async with asyncio.timeout(self._request_seconds):  # an answer begins at once, even if no event comes
                answer = await self._send("GET", resource.path(namespace), query, None, "", limits)
            async with answer:
                if answer.status != HTTPStatus.OK:
                    raise _error(answer, await answer.read())
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _error_from_status(event["object"])
                    yield event
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise ApiError(0, f"the watch broke off: {_text(error)}") from error

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """One object, or None when there is none."""
        try:
            return await self.request("GET", resource.path(namespace, name))
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    # Writing

    async def apply(self, resource: Resource, manifest: Object, *, subresource: str | None = None) -> Object:
        """Server-side apply, forced: the fields in `manifest` become ours; all others stay whose they are.

        With a `metadata.resourceVersion` only as of that version; raises ApiError (409) when it has changed since.
        """
        metadata = manifest["metadata"]
        return await self._write(
            "PATCH",
            resource.path(metadata.get("namespace"), metadata["name"], subresource),
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            body=manifest,
            content_type=_APPLY,
        )

    async def patch(self, resource: Resource, namespace: str | None, name: str, body: Object) -> Object:
        """JSON merge patch; with a `metadata.uid`, of that very object only: raises ApiError (409) for another."""
        return await self._write(
            "PATCH",
            resource.path(namespace, name),
            query={"fieldManager": FIELD_MANAGER},
            body=body,
            content_type=_MERGE_PATCH,
        )

    async def delete(
        self, resource: Resource, namespace: str | None, name: str, *, uid: str, resource_version: str = ""
    ) -> None:
        """Delete this very object (by uid), its dependents in the background.  Already gone is fine.

        With a `resource_version` only as of that version; raises ApiError (409) when it has changed since.
        """
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid} | ({"resourceVersion": resource_version} if resource_version else {}),
        }
        try:
            await self._write("DELETE", resource.path(namespace, name), body=body)
        except ApiError as error:
            # Conflict of uids: another object has its name by now, and that one was not meant.
            if error.status == HTTPStatus.NOT_FOUND or (error.status == HTTPStatus.CONFLICT and not resource_version):
                return
            raise

    async def _write(self, method: str, path: str, **options: Any) -> Object:
        return await self.request(method, path, fenced=True, **options)

    # Underneath

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        attempts: int | None = None,
        fenced: bool = False,
    ) -> Object:
        """Send a request that may be repeated safely; retry it when the server is busy or out of reach.

        Raises ApiError after the last attempt, or at once for what repeating cannot mend.  `fenced`: each attempt only
        as leader and no longer than that; raises NotLeaderError.
        """
        last = (self._attempts if attempts is None else attempts) - 1
        attempt = 0
        while True:
            limits = aiohttp.ClientTimeout(total=self._fence() if fenced else self._request_seconds, sock_connect=10)
            try:
                return await self._once(method, path, query, body, content_type, limits)
            except ApiError as error:
                if attempt >= last or not error.transient:
                    raise
                delay = _delay(attempt, error.retry_after_s)
                log.debug("%s %s: %s; again in %.1f s", method, path, error, delay)
            await asyncio.sleep(delay)
            attempt += 1

    def _fence(self) -> float:
        """Seconds that a write may take which begins now.  Raises NotLeaderError."""
        if not self.may_write():
            raise NotLeaderError("this replica does not hold the Lease: write held back")
        return min(self._request_seconds, self.write_seconds())

    async def _once(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        body: Object | None,
        content_type: str,
        limits: aiohttp.ClientTimeout,
    ) -> Object:
        try:
            answer = await self._send(method, path, query, body, content_type, limits)
            async with answer:
                data = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ApiError(0, f"{method} {path}: API server out of reach: {_text(error)}") from error
        if not 200 <= answer.status < 300:
            raise _error(answer, data)
        try:
            parsed: Object = json.loads(data)
        except ValueError as error:
            raise ApiError(0, f"{method} {path}: the answer is not JSON: {_text(error)}") from error
        return parsed

    async def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        body: Object | None,
        content_type: str,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json", "User-Agent": FIELD_MANAGER}
        if content_type:
            headers["Content-Type"] = content_type
        token = await self.configuration.get_api_key_with_prefix("BearerToken")
        if token:
            headers["Authorization"] = token
        answer: aiohttp.ClientResponse = await self._rest.request(
            method,
            self._host + path,
            query_params=query,
            headers=headers,
            body=body,
            _preload_content=False,
            _request_timeout=limits,
        )
        return answer


async def load_configuration(kubeconfig: str | None = None) -> Configuration:
    """Where the API server is and who we are to it; see `Kube.connect` for the order.  Raises ApiError (status 0)."""
    configuration = Configuration()
    paths = kubeconfig or os.environ.get("KUBECONFIG")
    in_pod = not paths and os.environ.get("KUBERNETES_SERVICE_HOST")
    where = "the pod's service account" if in_pod else paths or "~/.kube/config"
    try:
        if in_pod:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        elif not kubeconfig_exists(paths):
            raise FileNotFoundError("there is no such file")
        else:
            await config.load_kube_config(config_file=paths, client_configuration=configuration)
    except (config.ConfigException, OSError, ValueError) as error:
        raise ApiError(0, f"no way to the API server from {where}: {error}; set KUBECONFIG or --kubeconfig") from error
    return configuration


def kubeconfig_exists(paths: str | None) -> bool:
    """Whether there is any of these files, else of $KUBECONFIG, else ~/.kube/config; the client warns where none is."""
    paths = paths or os.environ.get("KUBECONFIG") or "~/.kube/config"
    return any(Path(path).expanduser().is_file() for path in paths.split(os.pathsep))


def namespace_of_pod() -> str | None:
    """The namespace that this process's pod runs in; None outside a cluster."""
    try:
        return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text().strip() or None
    except OSError:
        return None


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return ({"labelSelector": labels} if labels else {}) | ({"fieldSelector": fields} if fields else {})


def _delay(attempt: int, retry_after_s: float | None) -> float:
    """Full jitter, doubling from 0.25 s; what the server asks for instead, up to 5 s."""
    if retry_after_s is not None:
        return min(retry_after_s, 5.0) + random.uniform(0, 0.25)  # noqa: S311
    return random.uniform(0, 0.25 * 2**attempt)  # noqa: S311


def _error(answer: aiohttp.ClientResponse, data: bytes) -> ApiError:
    try:
        status: Any = json.loads(data)
    except ValueError:
        status = {}
    if not isinstance(status, dict):
        status = {}
    body = {"message": data.decode(errors="replace")[:500]} | status | {"code": answer.status}
    return _error_from_status(body, answer.headers.get("Retry-After"))


def _error_from_status(status: Object, retry_after: str | None = None) -> ApiError:
    code = int(status.get("code") or 500)
    after = float(retry_after) if retry_after and retry_after.isdigit() else None
    message = status.get("message") or status.get("reason") or f"HTTP {code}"
    return ApiError(code, message, reason=status.get("reason") or "", retry_after_s=after)


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
