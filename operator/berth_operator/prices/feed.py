"""What do the feeds say now?  Asks a ConfigMap and AWS again and again, and remembers the last answer of each.

A feed that cannot be read is reported and its last answer kept: which price then counts, `quotes.price` decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from berth_operator.api import HardwareClass
from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.resources import Resource
from berth_operator.prices.aws import AwsPriceError, AwsPrices
from berth_operator.prices.configmap import read_prices
from berth_operator.prices.quotes import Key, Quote, Quotes

log = logging.getLogger(__name__)

CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """Which feeds there are; where both speak of a price, the ConfigMap wins."""

    config_map: tuple[str, str] | None = None
    """Namespace and name."""
    aws_region: str | None = None
    config_map_every: timedelta = timedelta(seconds=30)
    aws_every: timedelta = timedelta(minutes=10)

    @property
    def any(self) -> bool:
        """Whether there is a feed at all."""
        return bool(self.config_map or self.aws_region)


class PriceFeed:
    """Follows the feeds.  `quotes` is what they say now; `on_change` is called when that differs from before."""

    def __init__(
        self,
        kube: Kube,
        settings: FeedSettings,
        classes: Callable[[], Iterable[HardwareClass]],
        on_change: Callable[[], None],
    ) -> None:
        """Raises AwsPriceError when AWS is asked for and boto3 is not installed."""
        self._kube = kube
        self._settings = settings
        self._classes = classes
        self._on_change = on_change
        self._aws = AwsPrices(settings.aws_region) if settings.aws_region else None
        self._aws_due = 0.0
        self._from_aws: dict[Key, Quote] = {}
        self._from_config_map: dict[Key, Quote] = {}
        self._failures: dict[str, tuple[str, ...]] = {}

    @property
    def quotes(self) -> Quotes:
        """What the feeds say."""
        keys = self._from_config_map.keys() | self._from_aws.keys()
        best_first = (self._from_config_map, self._from_aws)
        return Quotes(
            {key: tuple(source[key] for source in best_first if key in source) for key in keys},
            tuple(text for feed in sorted(self._failures) for text in self._failures[feed]),
        )

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            before = self._said()
            await self.ask()
            if self._said() != before:
                self._on_change()
            await asyncio.sleep(self._settings.config_map_every.total_seconds())

    async def ask(self) -> None:
        """Ask every feed that is due."""
        if self._settings.config_map:
            await self._ask_config_map(*self._settings.config_map)
        classes = list(self._classes())
        if self._aws and classes and time.monotonic() >= self._aws_due:
            await self._ask_aws(self._aws, classes)
            self._aws_due = time.monotonic() + self._settings.aws_every.total_seconds()

    async def _ask_config_map(self, namespace: str, name: str) -> None:
        where = f"{namespace}/{name}"
        try:
            found = await self._kube.get(CONFIG_MAPS, namespace, name)
        except ApiError as error:
            self._report("ConfigMap", [f"ConfigMap {where} cannot be read: {error}"])
            return
        if found is None:
            self._report("ConfigMap", [f"ConfigMap {where} does not exist"])
            return
        quotes, problems = read_prices(where, found.get("data") or {})
        self._from_config_map |= quotes
        self._report("ConfigMap", [*problems, *self._of_nothing(where, quotes)])

    def _of_nothing(self, where: str, quotes: Iterable[Key]) -> list[str]:
        """Prices of what no class has; nothing while no class is known."""
        known = {(item.metadata.name, way.type) for item in self._classes() for way in item.spec.capacity}
        strange = sorted(f"{name} {kind.value}" for name, kind in set(quotes) - known) if known else []
        return [f"ConfigMap {where}: {text}: no HardwareClass has such capacity" for text in strange]

    async def _ask_aws(self, aws: AwsPrices, classes: list[HardwareClass]) -> None:
        try:
            quotes, failures = await asyncio.to_thread(aws.quotes, classes)
        except AwsPriceError as error:
            quotes, failures = {}, [str(error)]
        self._from_aws |= quotes
        self._report("AWS", failures)

    def _report(self, feed: str, failures: list[str]) -> None:
        """Remember what is wrong with a feed; say it when it is new."""
        before = self._failures.get(feed, ())
        self._failures[feed] = tuple(failures)
        for text in failures:
            if text not in before:
                log.warning("prices: %s; the last good price stands", text)
        if before and not failures:
            log.info("prices: %s can be read again", feed)

    def _said(self) -> object:
        """Everything but the times."""
        prices = {key: [(q.source, q.usd_per_hour) for q in found] for key, found in self.quotes.by_key.items()}
        return prices, dict(self._failures)
