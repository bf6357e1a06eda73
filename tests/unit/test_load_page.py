"""Is a worker's page read when it can be true, and refused by name when it cannot?"""

import prometheus_client
import pytest
from berth_operator.load.exposition import read_page
from berth_operator.load.page import LieError, Page, growth
from hypothesis import given
from hypothesis import strategies as st

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
IDLE = f'{RUNNING}{{model_name="m"}} 0\n{WAITING}{{model_name="m"}} 0\n'


def page(running: float = 0, waiting: float = 0, **counts: float) -> Page:
    return Page(running, waiting, **counts)


def test_a_page_is_summed_over_its_series_and_nothing_else_is_read() -> None:
    registry = prometheus_client.CollectorRegistry()
    running = prometheus_client.Gauge(RUNNING, "h", ["model_name", "engine"], registry=registry)
    waiting = prometheus_client.Gauge(WAITING, "h", ["model_name", "engine"], registry=registry)
    ended = prometheus_client.Counter("vllm:request_success", "h", ["finished_reason"], registry=registry)
    gap = prometheus_client.Histogram("vllm:inter_token_latency_seconds", "h", registry=registry)
    prometheus_client.Gauge("vllm:num_requests_running_else", "h", registry=registry).set(float("nan"))
    for engine, count in (("0", 3), ("1", 4)):
        running.labels("m", engine).set(count)
        waiting.labels("m", engine).set(1)
    for reason, count in (("stop", 5), ("length", 2), ("abort", 1)):
        ended.labels(reason).inc(count)
    gap.observe(0.02)
    gap.observe(0.04)
    found = read_page(prometheus_client.generate_latest(registry))
    assert (found.running, found.waiting, found.finished, found.gaps) == (7, 2, 8, 2)
    assert found.gap_seconds == pytest.approx(0.06)
    assert found.in_flight == 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", f"{RUNNING} is missing"),
        (f"{RUNNING} 1\n", f"{WAITING} is missing"),
        (f"{RUNNING} NaN\n{WAITING} 0\n", f"{RUNNING} is nan: a number from 0 to 4096"),
        (f"{RUNNING} -1\n{WAITING} 0\n", f"{RUNNING} is -1"),
        (f"{RUNNING} +Inf\n{WAITING} 0\n", f"{RUNNING} is inf"),
        (f"{RUNNING} 1e9\n{WAITING} 0\n", f"{RUNNING} is 1e+09"),
        (f"{IDLE}vllm:prompt_tokens_total -5\n", "vllm:prompt_tokens_total is -5"),
        (f"{IDLE}vllm:request_success_total 1e300\n", "vllm:request_success_total is 1e+300"),
        (f"{RUNNING} many\n", "no Prometheus text"),
        (f"{RUNNING}{{model_name= 3\n", "no Prometheus text"),
        (IDLE * 300, "600 series of the metrics of interest: at most 512"),
        (f'{RUNNING}{{model_name="{"x" * 5000}"}} 1\n', "a line of more than 4096 bytes"),
        (f"{RUNNING} 3000\n{RUNNING} 3000\n{WAITING} 0\n", f"{RUNNING} is 6000"),
        ("<html><body>Not found</body></html>", f"{RUNNING} is missing"),
    ],
)
def test_a_page_that_cannot_be_true_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(LieError) as refused:
        read_page(text.encode())
    assert words in str(refused.value)


@given(st.binary(max_size=2000) | st.text(max_size=500).map(lambda text: f"{RUNNING}{text}".encode()))
def test_whatever_comes_is_a_page_or_a_refusal(body: bytes) -> None:
    for text in (body, IDLE.encode() + body):
        try:
            found = read_page(text)
        except LieError as refused:
            assert 0 < len(str(refused)) < 400
        else:
            assert 0 <= found.running <= 4096


def test_growth_is_what_was_added_and_gauges_are_those_of_now() -> None:
    before, after = page(3, 1, finished=10, gaps=100), page(5, 0, finished=14, gaps=160, refused=2)
    assert growth(before, after, 5) == page(5, 0, finished=4, gaps=60, refused=2)


def test_counts_that_fell_are_those_of_another_process() -> None:
    assert growth(page(finished=10, generated_tokens=500), page(finished=2, generated_tokens=40), 5) is None


@pytest.mark.parametrize("name", ["finished", "prompt_tokens", "generated_tokens", "gap_seconds"])
def test_growth_that_no_replica_can_have_is_refused(name: str) -> None:
    with pytest.raises(LieError, match="a second: at most"):
        growth(page(), page(**{name: 1e12}), 5)
