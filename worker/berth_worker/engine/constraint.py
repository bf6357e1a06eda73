"""What may a request's output be?  The engine asks token by token; who knows the grammar stands behind a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Constraint", "ConstraintError"]


class ConstraintError(RuntimeError):
    """It cannot be said what may come next: the grammar takes more work than one token is allowed."""


class Constraint(Protocol):
    """One output, as far as it has come: `accept` is told of each of its tokens, in order.

    What it says depends on these tokens alone, so drafts and preemptions change nothing.
    """

    @property
    def ended(self) -> bool:
        """The output is whole, and nothing can follow."""
        ...

    def forced(self) -> Sequence[int]:
        """The tokens that come next, one after the other, because nothing else can; empty where there is a choice."""
        ...

    def fits(self, tokens: Sequence[int]) -> int:
        """How many of these tokens may come next, one after the other."""
        ...

    def mask(self) -> bytes:
        """Which tokens may come next, at least one: bit t % 8, from the lowest, of byte t // 8 for token t.

        Raises ConstraintError."""
        ...

    def accept(self, token: int) -> None:
        """The token has come.  Raises ConstraintError, also if it is none that may."""
        ...
