"""Do releases say the same of a namespace that they both serve, and does only one that is renewed count?"""

from typing import Any

from berth_operator.cluster.presence import SERVES_ANNOTATION, Presence, Release, both_serve

ALL, TEAM_A = Release("berth/all"), Release("a/berth", frozenset({"team-a"}))
TEAM_B = Release("b/berth", frozenset({"team-b", "team-c"}))


def test_both_say_the_same_and_only_of_what_both_serve() -> None:
    mine, theirs = both_serve("team-a", ALL, [TEAM_A]), both_serve("team-a", TEAM_A, [ALL])
    assert mine == theirs
    assert mine is not None
    assert mine.startswith("releases a/berth and berth/all serve this namespace")
    assert both_serve("team-b", ALL, [TEAM_A]) is None
    assert both_serve("team-b", TEAM_A, [ALL]) is None
    three = both_serve("team-a", ALL, [TEAM_A, Release("z/berth")])
    assert three is not None
    assert three.startswith("releases a/berth, berth/all and z/berth serve")


def test_releases_meet_where_one_serves_all_or_both_serve_one() -> None:
    assert ALL.meets(TEAM_A) and TEAM_A.meets(ALL) and TEAM_A.meets(TEAM_A)
    assert not TEAM_A.meets(TEAM_B)


def _lease(version: str, serves: str = "") -> dict[str, Any]:
    metadata = {"resourceVersion": version, "annotations": {SERVES_ANNOTATION: serves}}
    return {"metadata": metadata, "spec": {"leaseDurationSeconds": 30}}


def test_a_lease_counts_once_it_is_renewed_and_until_it_is_silent() -> None:
    now = [0.0]
    presence = Presence(None, ALL, leading=lambda: True, clock=lambda: now[0])  # type: ignore[arg-type]
    seen = presence._alive
    assert seen("a.berth", _lease("1")) is None  # it may be all that an uninstalled release has left
    assert seen("a.berth", _lease("1")) is None
    assert seen("a.berth", _lease("2", "team-a")) == TEAM_A
    now[0] = 29.0
    assert seen("a.berth", _lease("2", "team-a")) == TEAM_A
    now[0] = 30.0
    assert seen("a.berth", _lease("2", "team-a")) is None
