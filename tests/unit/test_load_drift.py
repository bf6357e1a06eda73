"""Is a profile contradicted when workers are lastingly slower or faster than it says, and only then?"""

from collections.abc import Iterable

import pytest
from berth_operator.api import ServingProfile
from berth_operator.api.inference_pool import ProfileDrift
from berth_operator.load.drift import DriftPolicy, Evidence, corrected
from berth_operator.load.page import Page
from hypothesis import given
from hypothesis import strategies as st

POLICY = DriftPolicy(bucket_s=60, lasting_s=600, least_buckets=4)
EVERY = 10.0
CONTEXT = 2000.0


def profile(prefill: str = "1000") -> ServingProfile:
    """Steps of 50 ms at 1 request and 100 ms at 8."""
    points = [
        {"concurrency": b, "contextTokens": 2000, "decodeTokensPerSecond": speed, "interTokenLatencyP99": gap}
        for b, speed, gap in ((1, "20", "60ms"), (8, "80", "120ms"))
    ]
    spec = {
        "model": "m",
        "quantization": "Int8",
        "hardwareClass": "graviton4",
        "runtime": "Berth",
        "points": points,
        "prefillTokensPerSecond": prefill,
        "kvCacheTokens": 100_000,
        "provenance": {"method": "Published", "source": "a data sheet"},
    }
    return ServingProfile.model_validate({"metadata": {"name": "m-graviton4"}, "spec": spec}, extra="forbid")


def decoded(running: float, gap_s: float, *, prefilled: float = 0.0, seconds: float = EVERY) -> Page:
    """What a worker adds that decodes `running` requests at once, a token each every `gap_s`."""
    return Page(running, 0, gap_seconds=running * seconds, gaps=running * seconds / gap_s, prompt_tokens=prefilled)


def evidence(pages: Iterable[Page]) -> Evidence:
    found = Evidence(POLICY)
    for i, page in enumerate(pages):
        found.add(EVERY * (i + 1), EVERY, page)
    return found


def verdict(pages: Iterable[Page], before: ProfileDrift | None = None) -> ProfileDrift | None:
    return evidence(pages).verdict(profile(), CONTEXT, before)


LONG = 90
"""Rounds in a quarter of an hour."""


@pytest.mark.parametrize("factor", [0.85, 1.0, 1.15])
def test_a_profile_that_is_nearly_right_is_left_in_peace(factor: float) -> None:
    assert verdict([decoded(8, 0.100 * factor)] * LONG) is None


@pytest.mark.parametrize(("factor", "percent"), [(2.0, 50), (1.4, 70), (0.5, 200)])
def test_a_lasting_contradiction_is_found_with_its_size(factor: float, percent: int) -> None:
    found = verdict([decoded(8, 0.100 * factor)] * LONG)
    assert found == ProfileDrift(
        profile="m-graviton4", hardware_class="graviton4", speed_percent=percent, concurrency=8
    )


def test_what_has_not_lasted_is_no_contradiction() -> None:
    assert verdict([decoded(8, 0.2)] * (LONG // 2)) is None
    assert verdict([decoded(8, 0.2)] * 45 + [decoded(8, 0.1)] * 7 + [decoded(8, 0.2)] * 38) is None


def test_a_few_tokens_say_nothing() -> None:
    assert verdict([decoded(0.01, 0.2)] * LONG) is None
    assert verdict([Page(0, 0)] * LONG) is None


def test_waiting_for_prefill_is_not_slowness() -> None:
    """Half of the time goes to prefill, so that tokens come half as fast, as the profile itself foretells."""
    assert verdict([decoded(8, 0.2, prefilled=5000)] * LONG) is None
    alike = verdict([decoded(8, 0.2, prefilled=0)] * LONG)
    assert alike and alike.speed_percent == 50


def test_each_moment_counts_by_its_own_concurrency() -> None:
    """By turns 1 request at 50 ms and 8 at 100 ms, as the profile says."""
    assert verdict([decoded(1, 0.05), decoded(8, 0.1)] * (LONG // 2)) is None


def test_what_was_said_stands_until_there_is_better_evidence() -> None:
    before = ProfileDrift(profile="m-graviton4", hardware_class="graviton4", speed_percent=50, concurrency=8)
    assert verdict([decoded(8, 0.1)] * 10, before) is before
    assert verdict([decoded(8, 0.1 / 0.82)] * LONG, before) is before  # less than a fifth, but not yet near
    assert verdict([decoded(8, 0.1 / 0.53)] * LONG, before) is before  # nearly the same size: nothing to write
    assert verdict([decoded(8, 0.1)] * LONG, before) is None
    worse = verdict([decoded(8, 0.1 / 0.3)] * LONG, before)
    assert worse and worse.speed_percent == 30


@given(st.floats(0.2, 3.0), st.floats(0.97, 1.03))
def test_jitter_never_changes_what_was_said(speed: float, jitter: float) -> None:
    first = verdict([decoded(8, 0.1 / speed)] * LONG)
    again = verdict([decoded(8, 0.1 / speed / jitter)] * LONG, first)
    assert again is first or (first is None) != (again is None)
    if again is not first:
        assert min(abs(speed - 0.8), abs(speed - 1.2)) < 0.05 or min(abs(speed - 0.85), abs(speed - 1.15)) < 0.05


def test_memory_is_bounded() -> None:
    found = evidence([decoded(8, 0.1)] * 10_000)
    assert len(found.buckets) <= 14


def test_the_corrected_profile_is_borne_out_and_says_where_it_comes_from() -> None:
    drift = verdict([decoded(8, 0.2)] * LONG)
    assert drift
    found = corrected(profile(), drift, "team/agents", "2026-11-21")
    assert [str(p.decode_tokens_per_second) for p in found.spec.points] == ["10.000", "40.000"]
    assert [p.inter_token_latency_p99.total_seconds() for p in found.spec.points] == [0.12, 0.24]
    assert found.metadata.name == "m-graviton4"
    assert found.spec.provenance.method == "Measured"
    assert "50% of this profile's speed" in found.spec.provenance.source
    assert "before: Published, a data sheet" in found.spec.provenance.source
    ServingProfile.model_validate(found.to_api(), extra="forbid")
    assert evidence([decoded(8, 0.2)] * LONG).verdict(found, CONTEXT, drift) is None
