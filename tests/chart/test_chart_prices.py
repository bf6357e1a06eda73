"""Do the values of price feeds reach the operator, with the one right that they need and no more?"""

from collections.abc import Callable
from typing import Any

from berth_operator.settings import Settings, parse

Only = Callable[..., dict[str, Any]]


def _settings(deployment: dict[str, Any]) -> Settings:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry.get("value", "10.0.0.7") for entry in container["env"]}
    return parse([], environment | {"BERTH_NAMESPACE": "berth-system"})


def _rules(helm: Any, **values: Any) -> list[dict[str, Any]]:
    roles = [item for item in helm.objects(**values) if item["kind"] in ("Role", "ClusterRole")]
    return [rule for role in roles for rule in role["rules"] if "configmaps" in rule["resources"]]


def test_no_feed_is_followed_unless_asked(only: Only, helm: Any) -> None:
    assert not _settings(only("Deployment")).feeds.any
    assert _rules(helm) == []


def test_feeds_are_followed_as_the_values_say(only: Only) -> None:
    prices = {"configMap": "prices", "aws": {"region": "eu-west-1", "interval": "5m"}, "maxAge": "2h"}
    chosen = _settings(only("Deployment", prices=prices))
    assert chosen.feeds.config_map == ("berth-system", "prices")
    assert chosen.feeds.aws_region == "eu-west-1"
    assert chosen.feeds.aws_every.total_seconds() == 300
    assert chosen.prices.max_age.total_seconds() == 7200


def test_the_operator_may_read_that_one_config_map_alone(helm: Any) -> None:
    (rule,) = _rules(helm, prices={"configMap": "prices"})
    assert rule["resourceNames"] == ["prices"]
    assert rule["verbs"] == ["get"]
