"""How is a worker's /metrics read without trusting it?  With limits on time and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self

import aiohttp

from berth_operator.load.exposition import read_page
from berth_operator.load.page import LieError, Page

MOST_BYTES: Final = 512 * 1024
"""A vLLM page with many histograms has about 100 KB."""


class UnreadableError(Exception):
    """The page could not be had; the text says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one read."""

    total_s: float = 2.0
    """From the first packet to the last byte, so that a body that dribbles or never ends is cut off."""
    connect_s: float = 1.0


class Scraper:
    """Reads pages.  `async with Scraper() as scraper: page = await scraper.read("10.1.2.3:8000")`"""

    def __init__(self, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self._limits = limits
        self._session = aiohttp.ClientSession(
            # No limit here: waiting for a free connection would count as the worker's time.  `watch` has slots.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=20),
            timeout=aiohttp.ClientTimeout(total=limits.total_s, sock_connect=limits.connect_s),
            headers={"Accept": "text/plain", "Accept-Encoding": "identity", "User-Agent": "berth-operator"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # nobody asked for a compressed body: it may be a bomb
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def read(self, address: str) -> Page:
        """The page of the worker at `address` (host:port).  Raises UnreadableError, or LieError for what it says."""
        try:
            async with self._session.get(f"http://{address}/metrics", allow_redirects=False) as answer:
                if answer.status != HTTPStatus.OK:
                    raise UnreadableError(f"/metrics answers {answer.status}: 200 was expected")
                if "Content-Encoding" in answer.headers:
                    raise LieError("/metrics is compressed, though plain text was asked for")
                body = bytearray()
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > MOST_BYTES:
                        raise LieError(f"/metrics has more than {MOST_BYTES} bytes")
        except TimeoutError:
            raise UnreadableError(f"/metrics was not read within {self._limits.total_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UnreadableError(f"/metrics cannot be read: {str(error)[:200] or type(error).__name__}") from None
        return read_page(bytes(body))
