"""What does a pool's spec mean once its class's defaults are filled in?"""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

import pytest
from berth_operator.api import InferencePool, resolve, spec_problems
from pydantic import ValidationError

MakePool = Callable[..., InferencePool]


@pytest.mark.parametrize("workload_class", ["Agentic", "Interactive", "Batch"])
def test_class_defaults_never_contradict_each_other(make_pool: MakePool, workload_class: str) -> None:
    pool = make_pool(workload={"class": workload_class, "demand": {"requestsPerSecond": "1"}})
    assert spec_problems(resolve(pool.spec)) == []


def test_longer_outputs_stretch_the_default_turn(make_pool: MakePool) -> None:
    workload = {"class": "Agentic", "demand": {"requestsPerSecond": "1"}, "shape": {"outputTokens": 5000}}
    effective = resolve(make_pool(workload=workload).spec)
    assert effective.turn_latency_p99 == timedelta(milliseconds=800) + 5000 * timedelta(milliseconds=60)
    assert spec_problems(effective) == []


def test_a_written_turn_that_default_tokens_do_not_fit_is_named(make_pool: MakePool) -> None:
    (problem,) = spec_problems(resolve(make_pool(objectives={"turnLatencyP99": "5s"}).spec))
    assert problem.reason == "ObjectivesContradict"
    assert "spec.objectives.turnLatencyP99: 5s" in problem.message
    assert "180 tokens x 60ms = 10s800ms" in problem.message


def test_sessions_become_requests_by_littles_law(make_pool: MakePool) -> None:
    workload = {"class": "Agentic", "demand": {"concurrentSessions": 170, "thinkTime": "2s"}}
    effective = resolve(make_pool(workload=workload, objectives={"turnLatencyP99": "15s"}).spec)
    assert effective.requests_per_second == Decimal(10)


def test_what_the_user_wrote_wins_over_the_class(make_pool: MakePool) -> None:
    pool = make_pool(
        placement={"spot": {"maxTrafficPercent": 10}},
        objectives={"interTokenLatencyP99": "30ms"},
        budget={"maxUsdPerHour": "2.50", "onExceeded": "Overspend"},
    )
    effective = resolve(pool.spec)
    assert effective.spot_max_traffic_percent == 10
    assert effective.inter_token_latency_p99 == timedelta(milliseconds=30)
    assert (effective.max_usd_per_hour, effective.on_exceeded) == (Decimal("2.50"), "Overspend")
    assert effective.survive_loss_percent == 70  # untouched default of Agentic


def test_defaults_are_shown_in_status_and_not_in_spec(make_pool: MakePool) -> None:
    pool = make_pool()
    assert resolve(pool.spec).to_api()["objectives"]["timeToFirstTokenP99"] == "800ms"
    assert "objectives" not in pool.to_api()["spec"]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"budget": {"maxUsdPerHour": "0"}}, "maxUsdPerHour"),
        ({"budget": {"maxUsdPerHour": 2.5}}, "maxUsdPerHour"),
        ({"workload": {"class": "Agentic", "demand": {"requestsPerSecond": "-1"}}}, "requestsPerSecond"),
        ({"workload": {"class": "Sporadic", "demand": {"requestsPerSecond": "1"}}}, "class"),
        ({"objectives": {"turnLatencyP99": "soon"}}, "turnLatencyP99"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_files_are_read_strictly_and_the_field_is_named(make_pool: MakePool, spec: dict, field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        make_pool(**spec)


def test_a_copy_under_another_name_has_its_own_key(make_pool: MakePool) -> None:
    pool = make_pool()
    before = pool.key
    copied = pool.model_copy(update={"metadata": pool.metadata.model_copy(update={"name": "other"})})
    assert copied.key == f"{before.partition('/')[0]}/other"
    assert pool.key == before
    assert pool.model_copy() == pool
