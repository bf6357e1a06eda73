"""Does the edge to the API server wait out what passes, and give up at once on what does not?

Against a real HTTP server.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from berth_operator.cluster.attempts import Attempts, ForeignObjectError, Result
from berth_operator.cluster.connection import Configuration
from berth_operator.cluster.kube import ApiError, Kube, NotLeaderError, load_configuration
from berth_operator.cluster.resources import DEPLOYMENTS, POOLS, SERVICES

Answers = list[tuple[int, Any]]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    """Start a server that gives these answers in turn (the last one for ever); the requests it saw are in `seen`."""
    runners: list[web.AppRunner] = []
    kubes: list[Kube] = []

    async def start(*answers: tuple[int, Any], **options: Any) -> tuple[Kube, list[web.Request]]:
        seen: list[web.Request] = []

        async def answer(request: web.Request) -> web.StreamResponse:
            await request.read()
            seen.append(request)
            status, body = answers[min(len(seen), len(answers)) - 1]
            if status == -1:
                await asyncio.Event().wait()
            if status == 0:
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            headers = {"Retry-After": "0"} if status == 429 else {}
            return web.json_response(body, status=status, headers=headers)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        configuration = Configuration()
        configuration.host = "http://{}:{}".format(*runner.addresses[0][:2])
        kubes.append(Kube(configuration, **options))
        return kubes[-1], seen

    yield start
    for kube in kubes:
        await kube.close()
    for runner in runners:
        await runner.cleanup()


@pytest.mark.parametrize("trouble", [429, 500, 503, 504, 0])
async def test_what_passes_is_waited_out(serve: Callable[..., Any], trouble: int) -> None:
    kube, seen = await serve((trouble, {}), (trouble, {}), (200, {"ok": True}))
    assert await kube.request("GET", "/x") == {"ok": True}
    assert len(seen) == 3


@pytest.mark.parametrize("refusal", [400, 401, 403, 404, 409, 422])
async def test_a_refusal_is_final_and_carries_the_servers_words(serve: Callable[..., Any], refusal: int) -> None:
    status = {"kind": "Status", "message": "no, because", "reason": "Because", "code": refusal}
    kube, seen = await serve((refusal, status))
    with pytest.raises(ApiError, match="no, because") as caught:
        await kube.request("GET", "/x")
    assert (caught.value.status, caught.value.reason, caught.value.transient) == (refusal, "Because", False)
    assert len(seen) == 1


async def test_attempts_are_bounded(serve: Callable[..., Any]) -> None:
    kube, seen = await serve((503, {}), attempts=3)
    with pytest.raises(ApiError) as caught:
        await kube.request("GET", "/x")
    assert caught.value.transient
    assert len(seen) == 3


async def test_a_list_is_put_together_from_its_pages(serve: Callable[..., Any]) -> None:
    def page(name: str, more: str) -> dict[str, Any]:
        return {"items": [{"metadata": {"name": name}}], "metadata": {"resourceVersion": "7", "continue": more}}

    kube, seen = await serve((200, page("a", "next")), (200, page("b", "")))
    listed = await kube.list(DEPLOYMENTS, "ns", labels="x=y")
    assert [(i["kind"], i["metadata"]["name"]) for i in listed.items] == [("Deployment", "a"), ("Deployment", "b")]
    assert listed.resource_version == "7"
    assert [r.path for r in seen] == ["/apis/apps/v1/namespaces/ns/deployments"] * 2
    assert [r.query.get("continue") for r in seen] == [None, "next"]
    assert seen[1].query["labelSelector"] == "x=y"


async def test_nothing_is_written_without_the_lease(serve: Callable[..., Any]) -> None:
    kube, seen = await serve((200, {}))
    kube.may_write = lambda: False
    manifest = {"metadata": {"name": "a", "namespace": "ns"}}
    with pytest.raises(NotLeaderError):
        await kube.apply(SERVICES, manifest)
    with pytest.raises(NotLeaderError):
        await kube.delete(SERVICES, "ns", "a", uid="u")
    assert seen == []


async def test_a_write_is_not_tried_again_once_the_lease_is_lost(serve: Callable[..., Any]) -> None:
    kube, seen = await serve((503, {}))
    kube.may_write = lambda: not seen
    with pytest.raises(NotLeaderError):
        await kube.apply(SERVICES, {"metadata": {"name": "a", "namespace": "ns"}})
    assert len(seen) == 1


async def test_a_write_that_gets_no_answer_is_given_up_before_a_standby_may_lead(serve: Callable[..., Any]) -> None:
    kube, seen = await serve((-1, {}))
    kube.may_write, kube.write_seconds = lambda: not seen, lambda: 0.2
    async with asyncio.timeout(10):
        with pytest.raises(NotLeaderError):
            await kube.delete(SERVICES, "ns", "a", uid="u")


async def test_apply_is_server_side_forced_and_ours(serve: Callable[..., Any]) -> None:
    kube, seen = await serve((200, {}))
    await kube.apply(POOLS, {"metadata": {"name": "a", "namespace": "ns"}}, subresource="status")
    assert seen[0].method == "PATCH"
    assert seen[0].path == "/apis/berth.dev/v1alpha1/namespaces/ns/inferencepools/a/status"
    assert dict(seen[0].query) == {"fieldManager": "berth-operator", "force": "true"}
    assert seen[0].headers["Content-Type"] == "application/apply-patch+yaml"


@pytest.mark.parametrize("gone", [404, 409])
async def test_deleting_what_is_gone_or_replaced_is_no_error(serve: Callable[..., Any], gone: int) -> None:
    kube, seen = await serve((gone, {"message": "gone"}))
    await kube.delete(SERVICES, "ns", "a", uid="u")
    assert len(seen) == 1


async def test_a_kubeconfig_that_is_not_there_is_said_so() -> None:
    with pytest.raises(ApiError, match=r"from /nonexistent/config: there is no such file; set KUBECONFIG"):
        await load_configuration("/nonexistent/config")


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_an_object_that_fails_is_tried_again_after_a_growing_delay_and_others_are_not_held() -> None:
    clock, tried = Clock(), []
    attempts = Attempts(clock)

    async def fail() -> bool:
        tried.append(clock.now)
        raise ForeignObjectError("taken")

    async def succeed() -> bool:
        return True

    for second in range(20):
        clock.now = second
        await attempts.attempt("bad", "Bad", fail)
        assert await attempts.attempt("good", "Good", succeed) is Result.WRITTEN
    assert tried == [0, 1, 3, 7, 15]
    assert attempts.retry_in_s() == 15 + 16 - 19
    assert await attempts.attempt("bad", "Bad", succeed) is Result.HELD
    clock.now = 31
    assert await attempts.attempt("bad", "Bad", succeed) is Result.WRITTEN
    assert attempts.retry_in_s() is None


async def test_a_conflict_is_no_failure_because_the_next_pass_sees_what_changed() -> None:
    attempts = Attempts(Clock())

    async def conflict() -> bool:
        raise ApiError(409, "the object has been modified")

    assert await attempts.attempt("a", "A", conflict) is Result.HELD
    assert attempts.retry_in_s() is None


async def test_a_watch_that_is_not_answered_at_all_is_given_up(unused_tcp_port: int) -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    server = await asyncio.start_server(silent, "127.0.0.1", unused_tcp_port)
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{unused_tcp_port}"
    kube = Kube(configuration, request_seconds=0.2)
    with pytest.raises(ApiError, match="the watch broke off"):
        async for _ in kube.watch(POOLS, resource_version="1", seconds=60):
            pass
    await kube.close()
    server.close()
