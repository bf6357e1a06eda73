"""How is the operator told what to do?  Flags, each with an environment variable; the flag wins."""

from __future__ import annotations

import argparse
import os
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from berth_operator.api.quantities import parse_duration
from berth_operator.cluster.kube import namespace_of_pod
from berth_operator.cluster.lease import LEASE_NAME
from berth_operator.cluster.resources import OPTIONAL_CHILDREN
from berth_operator.load.settings import LoadSettings, add_flags, load_settings
from berth_operator.moves import MOST_MOVES
from berth_operator.prices import PricePolicy
from berth_operator.prices.feed import FeedSettings
from berth_operator.render import RenderSettings
from berth_operator.shortage import ShortagePolicy

_KARPENTER: Final = "karpenter"
_INTEGRATIONS: Final = (*OPTIONAL_CHILDREN, _KARPENTER)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that start-up decides."""

    watch_namespaces: tuple[str, ...]
    """Empty: all."""
    namespace: str
    """Where the Lease lives."""
    identity: str
    leader_elect: bool
    kubeconfig: str | None
    metrics_address: tuple[str, int]
    health_address: tuple[str, int]
    debounce_s: float
    interval_s: float
    log_format: str
    log_level: str
    render: RenderSettings
    feeds: FeedSettings = field(default_factory=FeedSettings)
    prices: PricePolicy = field(default_factory=PricePolicy)
    integrations: tuple[str, ...] = ()
    """Other projects whose kinds pools may have, of `OPTIONAL_CHILDREN`."""
    discover_s: float = 30.0
    """How often it is asked whether their kinds are served."""
    node_check_s: float = 0.0
    """How often it is asked whether hardware classes have nodes; 0: never."""
    watch_nodes: bool = True
    """Whether nodes are watched for word that they go away."""
    lease_name: str = LEASE_NAME
    """Operators that serve different pools from one namespace have one each."""
    lease_duration_s: float = 10.0
    presence_s: float = 10.0
    """How often other releases are looked for."""
    load: LoadSettings = field(default_factory=LoadSettings)
    shortage: ShortagePolicy = field(default_factory=ShortagePolicy)
    max_moves: int = MOST_MOVES
    """Pools whose serving workers are replaced at once."""
    karpenter: bool = False
    """Follow what Karpenter says of nodes that it could not make."""


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the command line and the environment.  Exits with code 2 and one clear line on bad ones."""

    def default(name: str, value: str) -> str:
        return environment.get(f"BERTH_{name}", "") or value

    images = RenderSettings()
    parser = argparse.ArgumentParser(
        prog="berth-operator",
        description="Places Llama inference workers on the cheapest hardware that keeps their latency promise.",
        epilog="Every option has an environment variable: --worker-image is BERTH_WORKER_IMAGE.",
    )
    add = parser.add_argument
    add("--watch-namespaces", default=default("WATCH_NAMESPACES", ""), help="comma-separated; empty: all namespaces")
    add("--namespace", default=default("NAMESPACE", ""), help="where the Lease lives; default: the pod's own")
    add(
        "--identity", default=default("IDENTITY", ""), help="name as holder of the Lease; default: host name and a hash"
    )
    add("--leader-elect", action=argparse.BooleanOptionalAction, default=default("LEADER_ELECT", "true"))
    add("--kubeconfig", default=None, help="default: $KUBECONFIG, else the pod's service account, else ~/.kube/config")
    add("--metrics-address", default=default("METRICS_ADDRESS", "0.0.0.0:9090"), help="HOST:PORT of /metrics")
    add("--health-address", default=default("HEALTH_ADDRESS", "0.0.0.0:8080"), help="HOST:PORT of /healthz")
    add("--debounce", default=default("DEBOUNCE", "1s"), help="wait after a change before planning")
    add("--interval", default=default("INTERVAL", "30s"), help="plan at least this often")
    add("--price-config-map", default=default("PRICE_CONFIG_MAP", ""), help="[NAMESPACE/]NAME of a ConfigMap of prices")
    add("--aws-price-region", default=default("AWS_PRICE_REGION", ""), help="ask AWS for this region's prices")
    add(
        "--price-interval",
        default=default("PRICE_INTERVAL", "10m"),
        help="ask AWS this often, and the ConfigMap at least every 30s",
    )
    add(
        "--price-max-age",
        default=default("PRICE_MAX_AGE", "6h"),
        help="beyond it a feed's last price moves no placement",
    )
    add(
        "--node-check",
        default=default("NODE_CHECK", ""),
        help="ask this often whether classes have nodes, 0s: never; default: 1m, or never with --watch-namespaces",
    )
    for add_part in (_add_integrations, _add_failure_handling, add_flags):
        add_part(parser, default)
    add("--worker-image", default=default("WORKER_IMAGE", images.worker_image))
    add("--vllm-image", default=default("VLLM_IMAGE", images.vllm_image))
    add("--image-pull-policy", default=default("IMAGE_PULL_POLICY", images.image_pull_policy))
    add("--log-format", default=default("LOG_FORMAT", "text"))
    add("--log-level", default=default("LOG_LEVEL", "info"))
    given = parser.parse_args(arguments)

    def choice(name: str, value: str, *known: str) -> str:
        if value not in known:
            parser.error(f"--{name}: found {value!r}, expected one of {', '.join(known)}")
        return value

    def address(name: str, value: str) -> tuple[str, int]:
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            parser.error(f"--{name}: found {value!r}, expected HOST:PORT such as 0.0.0.0:9090")
        return host.strip("[]"), int(port)

    def seconds(name: str, value: str) -> float:
        try:
            return parse_duration(value).total_seconds()
        except ValueError as error:
            parser.error(f"--{name}: {error}")

    def config_map(value: str) -> tuple[str, str] | None:
        in_namespace, _, name = value.rpartition("/")
        if value and (not name or not (in_namespace or namespace)):
            parser.error(f"--price-config-map: found {value!r}, expected NAMESPACE/NAME")
        return (in_namespace or namespace, name) if value else None

    def switch(name: str, value: str | bool) -> bool:
        if isinstance(value, bool):
            return value
        variable = f"BERTH_{name.upper().replace('-', '_')}"
        return choice(f"{name} ({variable})", value.lower(), "true", "false") == "true"

    leader_elect = switch("leader-elect", given.leader_elect)
    namespace = given.namespace or namespace_of_pod() or ""
    every = timedelta(seconds=max(1.0, seconds("price-interval", given.price_interval)))
    if leader_elect and not namespace:
        parser.error("--namespace: is required outside a pod, for the Lease; or choose --no-leader-elect")
    return Settings(
        watch_namespaces=_items(given.watch_namespaces),
        namespace=namespace,
        identity=given.identity or f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}",
        leader_elect=leader_elect,
        kubeconfig=given.kubeconfig,
        metrics_address=address("metrics-address", given.metrics_address),
        health_address=address("health-address", given.health_address),
        debounce_s=seconds("debounce", given.debounce),
        interval_s=max(0.1, seconds("interval", given.interval)),
        log_format=choice("log-format", given.log_format, "text", "json"),
        log_level=choice("log-level", given.log_level.lower(), "debug", "info", "warning", "error"),
        render=RenderSettings(
            worker_image=given.worker_image,
            vllm_image=given.vllm_image,
            image_pull_policy=choice("image-pull-policy", given.image_pull_policy, "Always", "IfNotPresent", "Never"),
            pod_monitor_labels=_labels(parser, given.pod_monitor_labels),
            pod_monitor_interval=given.pod_monitor_interval,
        ),
        feeds=FeedSettings(
            config_map=config_map(given.price_config_map),
            aws_region=given.aws_price_region or None,
            config_map_every=min(timedelta(seconds=30), every),
            aws_every=every,
        ),
        integrations=tuple(
            choice("integrations", name, *_INTEGRATIONS) for name in _items(given.integrations) if name != _KARPENTER
        ),
        discover_s=max(0.1, seconds("discover-interval", given.discover_interval)),
        watch_nodes=switch("watch-nodes", given.watch_nodes) if given.watch_nodes != "" else not given.watch_namespaces,
        lease_name=given.lease_name,
        lease_duration_s=max(1.0, seconds("lease-duration", given.lease_duration)),
        presence_s=max(0.1, seconds("presence-interval", given.presence_interval)),
        node_check_s=seconds("node-check", given.node_check or ("0s" if given.watch_namespaces else "1m")),
        load=load_settings(given, parser, seconds),
        max_moves=_number(parser, "max-moves", given.max_moves),
        shortage=ShortagePolicy(
            grace=timedelta(seconds=seconds("shortage-grace", given.shortage_grace)),
            back_off=timedelta(seconds=max(1.0, seconds("shortage-back-off", given.shortage_back_off))),
            most=timedelta(seconds=max(1.0, seconds("shortage-back-off-max", given.shortage_back_off_max))),
        ),
        karpenter=_KARPENTER in _items(given.integrations),
        prices=PricePolicy(max_age=timedelta(seconds=seconds("price-max-age", given.price_max_age))),
    )


def _add_failure_handling(parser: argparse.ArgumentParser, default: Callable[[str, str], str]) -> None:
    add = parser.add_argument
    add("--lease-name", default=default("LEASE_NAME", LEASE_NAME), help="those of one name are replicas of each other")
    add(
        "--lease-duration",
        default=default("LEASE_DURATION", "10s"),
        help="a leader that is silent for so long has lost the Lease; at least 1s",
    )
    add(
        "--presence-interval",
        default=default("PRESENCE_INTERVAL", "10s"),
        help="look this often for other releases that serve the same namespaces",
    )
    add(
        "--watch-nodes",
        action=argparse.BooleanOptionalAction,
        default=default("WATCH_NODES", ""),
        help="replace workers whose nodes are going away; default: unless --watch-namespaces is given",
    )
    add("--max-moves", default=default("MAX_MOVES", str(MOST_MOVES)), help="pools whose workers are replaced at once")
    add("--shortage-grace", default=default("SHORTAGE_GRACE", "3m"), help="pods may wait for a node this long")
    add(
        "--shortage-back-off",
        default=default("SHORTAGE_BACK_OFF", "5m"),
        help="hardware that cannot be had is left alone this long, then twice as long each time",
    )
    add("--shortage-back-off-max", default=default("SHORTAGE_BACK_OFF_MAX", "1h"), help="longest such back-off")


def _add_integrations(parser: argparse.ArgumentParser, default: Callable[[str, str], str]) -> None:
    add, rendering = parser.add_argument, RenderSettings()
    add(
        "--integrations",
        default=default("INTEGRATIONS", ""),
        help=f"comma-separated, of {', '.join(_INTEGRATIONS)}: make or follow their objects where their CRDs are",
    )
    add("--discover-interval", default=default("DISCOVER_INTERVAL", "30s"), help="look for their CRDs this often")
    add("--pod-monitor-labels", default=default("POD_MONITOR_LABELS", ""), help="KEY=VALUE, comma-separated")
    add("--pod-monitor-interval", default=default("POD_MONITOR_INTERVAL", rendering.pod_monitor_interval))


def _items(value: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in value.split(","))))


def _labels(parser: argparse.ArgumentParser, value: str) -> dict[str, str]:
    pairs = [item.partition("=") for item in _items(value)]
    if bad := [key for key, equals, _ in pairs if not (key and equals)]:
        parser.error(f"--pod-monitor-labels: found {bad[0]!r}, expected KEY=VALUE")
    return {key: label for key, _, label in pairs}


def _number(parser: argparse.ArgumentParser, name: str, value: str) -> int:
    if not value.isdigit() or not int(value):
        parser.error(f"--{name}: found {value!r}, expected a number of 1 or more")
    return int(value)
