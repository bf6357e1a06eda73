"""What will a request say next, and how much of that guess is worth computing?

Prompt lookup: an agent's output quotes its prompt, so where the last tokens stood before, what followed them then is
a draft of what follows now (Saxena, "Prompt Lookup Decoding", 2023). The drafted tokens run as further rows of the next
step. Row by row the next token is sampled as without a draft, and the first that differs from the draft ends it: the
output is that of plain decoding, random numbers included, whatever was drafted.

Each row costs time, so drafts are as long as pays: by the chance that the draft is right so far, and by what a row
more costs in a step of that size. The chance is measured, by how long the match is; also on drafts that were not run,
because the token that comes says whether they would have been right. So a request that begins to quote is noticed
without a trial, and one that does not costs nothing.

Where a request's output has to keep to a grammar, tokens that the grammar forces are a draft that is always right, so
that JSON's keys and punctuation take no steps of their own; of other drafts what it forbids is cut off.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from berth_worker.engine.constraint import Constraint
from berth_worker.engine.cost import Load, Pace
from berth_worker.engine.request import Request

__all__ = ["LONGEST_DRAFT", "Acceptance", "Drafter", "PromptLookup", "drafts"]

NGRAM = 3
"""Tokens that must match at least."""
LONGEST_MATCH = 16
"""Matches are not told apart beyond so many tokens."""
CANDIDATES = 16
"""Earlier places looked at, the latest first (a hash chain, as deflate's in RFC 1951, section 4)."""
LONGEST_DRAFT = 24
INDEXED = 4096
"""Tokens of one request that one step adds to the index at most: about a millisecond."""
_BITS = 21  # of a token id in a key; more tokens than any vocabulary has
_KEY = (1 << NGRAM * _BITS) - 1
# match length -> class: 3, 4 and 5, 6 to 8, 9 to 15, 16
_CLASS = (0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 4)


class PromptLookup:
    """Where the last tokens of a growing sequence stood before. O(1) a token added, and a lookup."""

    def __init__(self) -> None:
        self._key = 0
        self._end = 0
        """Tokens that are indexed: every n-gram within them but the last, which has no continuation yet."""
        self._latest: dict[int, int] = {}
        """n-gram to the position after its latest occurrence."""
        self._before: list[int] = []
        """[position] where the n-gram that ends before it ended the time before; 0 if never."""

    def find(self, tokens: Sequence[int]) -> tuple[int, int] | None:
        """(where what followed the longest match stands, tokens that match), the latest of equals.

        tokens are those of the last call and more. None where nothing matches, or not all is indexed yet.
        """
        count = len(tokens)
        stop = min(count, self._end + INDEXED)
        key, latest, before = self._key, self._latest, self._before
        for position in range(self._end, stop):
            if position >= NGRAM:
                before.append(latest.get(key, 0))
                latest[key] = position
            else:
                before.append(0)
            key = (key << _BITS | tokens[position]) & _KEY
        self._key, self._end = key, stop
        if stop < count or count < NGRAM:
            return None
        best, best_length = 0, 0
        candidate = latest.get(key, 0)
        for _ in range(CANDIDATES):
            if not candidate:
                break
            if tokens[candidate - 1 - best_length] == tokens[count - 1 - best_length] or not best:
                length = _match(tokens, candidate, count)
                if length > best_length:
                    best, best_length = candidate, length
                    if length == LONGEST_MATCH:
                        break
            candidate = before[candidate]
        return (best, best_length) if best else None


def _match(tokens: Sequence[int], first: int, second: int) -> int:
    """How many tokens before `first` equal those before `second` > first, to LONGEST_MATCH."""
    length, most = 0, min(first, LONGEST_MATCH)
    while length < most and tokens[first - 1 - length] == tokens[second - 1 - length]:
        length += 1
    return length


class Acceptance:
    """How often a drafted token was right, by the length of the match before it; old evidence fades."""

    def __init__(self, common: Acceptance | None = None) -> None:
        """common: of all requests together, what a new request is taken for."""
        self._common = common
        self._right = [0.0] * 5
        self._seen = [0.0] * 5

    def chance(self, length: int) -> float:
        """That the token drafted after a match of so many tokens is right."""
        kind = _CLASS[min(length, LONGEST_MATCH)]
        if self._common is None:
            prior, weight = (0.2, 0.35, 0.5, 0.7, 0.8)[kind], 4.0
        else:
            prior, weight = self._common.chance(length), 3.0
        return (self._right[kind] + weight * prior) / (self._seen[kind] + weight)

    def learn(self, length: int, right: bool) -> None:
        """The token drafted after such a match was right, or not."""
        fade = 0.998 if self._common is None else 0.95
        kind = _CLASS[min(length, LONGEST_MATCH)]
        self._right[kind] = self._right[kind] * fade + right
        self._seen[kind] = self._seen[kind] * fade + 1.0
        if self._common is not None:
            self._common.learn(length, right)


@dataclass(slots=True)
class Drafter:
    """Drafts of one request."""

    request: Request
    acceptance: Acceptance
    constraint: Constraint | None = None
    """What the request's output may be."""
    _lookup: PromptLookup = field(default_factory=PromptLookup)
    match: int = 0
    """Tokens before the guess that match."""
    guess: list[int] = field(default_factory=list)
    """What may come next, if what came before is a sign."""
    certain: bool = False
    """The guess is right: nothing else can come."""

    def look(self) -> None:
        """Set `guess`, `match` and `certain` for the request as it stands."""
        request = self.request
        tokens = request.tokens
        self.guess, self.certain = [], False
        most = min(LONGEST_DRAFT, request.max_tokens - request.generated - 1)  # the last token comes without a draft
        if most < 1:
            return
        if self.constraint is not None and (forced := self.constraint.forced()):
            self.guess, self.certain = list(forced[:most]), True
            return
        if (found := self._lookup.find(tokens)) is None:
            return
        source, self.match = found
        self.guess = list(tokens[source : source + most])
        for at in range(most - len(self.guess)):  # the match reaches into what it repeats
            self.guess.append(self.guess[at])
        if self.constraint is not None:
            del self.guess[self.constraint.fits(self.guess) :]

    def chance(self, place: int) -> float:
        """That the guess is right at this place, if it is before."""
        return 1.0 if self.certain else self.acceptance.chance(self.match + place)

    def judge(self, came: Sequence[int]) -> None:
        """Learn from the tokens that came, whether or not they were drafted."""
        if self.certain:
            self.guess = []
        for at, (guessed, token) in enumerate(zip(self.guess, came, strict=False)):
            self.acceptance.learn(self.match + at, guessed == token)
            if guessed != token:
                break
        self.guess = []


def drafts(drafters: Sequence[Drafter], load: Load, pace: Pace, most: int) -> dict[Request, list[int]]:
    """The drafts that bring the most tokens a second, of at most so many rows together and within the pace.

    load: the step without them, in which each running request brings one token. Rows are added one by one, the one
    likeliest to be right first, for as long as that raises expected tokens over expected seconds: right, because
    neither a row gets cheaper nor a longer draft likelier.
    """
    lengths = [0] * len(drafters)
    queue: list[tuple[float, int]] = []
    for index, drafter in enumerate(drafters):
        if drafter.guess:
            heapq.heappush(queue, (-drafter.chance(0), index))
    tokens = float(load.rows)
    cost = pace.cost
    seconds = cost.predict(load)
    allowed = pace.seconds / cost.lateness
    while queue and most > 0:
        chance, index = -queue[0][0], queue[0][1]
        drafter = drafters[index]
        length = lengths[index]
        grown = load.plus(drafter.request.computed + 1 + length, 1, 1)
        longer = cost.predict(grown)
        if longer > allowed or (tokens + chance) * seconds <= tokens * longer:
            break
        load, seconds, tokens, most = grown, longer, tokens + chance, most - 1
        lengths[index] = length + 1
        if length + 1 < len(drafter.guess):
            further = chance * drafter.chance(length + 1)
            heapq.heapreplace(queue, (-further, index))
        else:
            heapq.heappop(queue)
    return {drafter.request: drafter.guess[:n] for drafter, n in zip(drafters, lengths, strict=True) if n}
