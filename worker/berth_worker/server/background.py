"""What must not hold up the event loop?  Work that takes long goes to a thread, so that streams flow meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

__all__ = ["in_thread_if"]

T = TypeVar("T")


async def in_thread_if(long: bool, function: Callable[..., T], *arguments: object) -> T:
    """The function's result: of a thread if that takes long."""
    return await asyncio.to_thread(function, *arguments) if long else function(*arguments)
