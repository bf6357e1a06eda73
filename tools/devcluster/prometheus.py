"""What would Prometheus make of these servers' metrics?  A real one on loopback that scrapes them twice a second."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import yaml

from devcluster.binaries import ensure
from devcluster.components import free_ports
from devcluster.processes import Process, kill, own_environment, wait_for
from devcluster.scratch import ScratchFolder

SCRAPE_INTERVAL_S = 0.5
_READY_WITHIN_S = 30.0


@dataclass(frozen=True)
class Target:
    """A server to scrape, and the labels that service discovery would give its series."""

    job: str
    address: str  # host:port
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """One series of an answer: its labels, and its last value."""

    labels: Mapping[str, str]
    value: float


class Prometheus:
    """``with Prometheus([Target("operator", "127.0.0.1:9090")]) as p: p.query("up")``. Enter it on the main thread."""

    def __init__(self, targets: Sequence[Target], *, address: str = "127.0.0.1") -> None:
        self._targets = list(targets)
        self._address = address

    def __enter__(self) -> Self:
        binary = ensure(["prometheus"])["prometheus"]
        self._scratch = ScratchFolder()
        folder = self._scratch.path
        (port,) = free_ports(1, self._address)
        self._url = f"http://{self._address}:{port}"
        config = folder / "prometheus.yaml"
        config.write_text(yaml.safe_dump(self._config()))
        self._process = Process(
            "prometheus",
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self._address}:{port}",
                "--query.lookback-delta=1m",
            ],
            folder / "prometheus.log",
            own_environment(),
        )
        try:
            wait_for("prometheus is ready", self._is_ready, _READY_WITHIN_S, [self._process])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove its data."""
        kill([self._process])
        self._scratch.remove()

    def query(self, expression: str) -> list[Series]:
        """An instant query, now. Raises ValueError with Prometheus' words if the expression cannot be evaluated."""
        answer = self._get("/api/v1/query", query=expression, time=f"{time.time():.3f}")
        if answer["data"]["resultType"] == "scalar":
            return [Series({}, float(answer["data"]["result"][1]))]
        return [Series(series["metric"], float(series["value"][1])) for series in answer["data"]["result"]]

    def unhealthy_targets(self) -> Mapping[str, str]:
        """Job -> why its last scrape failed (or that there was none yet); empty once all are scraped."""
        active = self._get("/api/v1/targets", state="active")["data"]["activeTargets"]
        unhealthy = {target.job: "not known yet" for target in self._targets}
        for target in active:
            job = target["labels"]["job"]
            if target["health"] == "up":
                unhealthy.pop(job, None)
            else:
                unhealthy[job] = target["lastError"] or f"health is {target['health']}"
        return unhealthy

    def _config(self) -> dict[str, Any]:
        interval = f"{int(SCRAPE_INTERVAL_S * 1000)}ms"
        return {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "scrape_configs": [
                {
                    "job_name": target.job,
                    "static_configs": [{"targets": [target.address], "labels": dict(target.labels)}],
                }
                for target in self._targets
            ],
        }

    def _is_ready(self) -> bool:
        try:
            with self._opener().open(f"{self._url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self._url}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with self._opener().open(url, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ValueError(f"{path} {parameters}: {error.read().decode(errors='replace')}") from None

    @staticmethod
    def _opener() -> urllib.request.OpenerDirector:
        """An HTTP client that heeds no proxy."""
        return urllib.request.build_opener(urllib.request.ProxyHandler({}))
