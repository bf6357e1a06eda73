"""What need not be made again?  Results of a pass kept by pool, for the next one.

An input is the same where it is the very same object: what does not change, the reflectors, the plan and `Kept` hand
out unchanged, so that a pass over a thousand pools at rest compares addresses and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class Memo(Generic[T]):
    """One result a key, with the inputs that it was made of."""

    _made: dict[str, tuple[tuple[object, ...], T]] = field(default_factory=dict)

    def get(self, key: str, inputs: tuple[object, ...], make: Callable[[], T]) -> T:
        """The result kept for a key if its inputs are the same objects; else it is made, and kept."""
        known = self._made.get(key)
        if known and len(known[0]) == len(inputs) and all(a is b for a, b in zip(known[0], inputs, strict=True)):
            return known[1]
        made = make()
        self._made[key] = (inputs, made)
        return made

    def forget(self, key: str) -> None:
        """Make it again next time."""
        self._made.pop(key, None)

    def keep_only(self, keys: Collection[str]) -> None:
        """Forget what nobody asks for any more."""
        for key in self._made.keys() - set(keys):
            del self._made[key]


@dataclass(slots=True)
class Kept(Generic[K, T]):
    """Hands out the earlier one of equal objects."""

    _last: dict[K, T] = field(default_factory=dict)

    def same(self, items: Iterable[tuple[K, T]]) -> dict[K, T]:
        """These items by key, each as the object that was given out before where it is equal."""
        found = {key: old if (old := self._last.get(key)) is item or old == item else item for key, item in items}
        self._last = found
        return found
