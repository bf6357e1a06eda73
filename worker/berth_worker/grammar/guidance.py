"""Which tokens keep an output to a grammar?  The llguidance library says; this is all that touches it.

It wants the bytes of every token (a fifth of a second and some 20 MB for 49,152, at first use), and reads a grammar in
well under a millisecond.  Both are bounded: what a grammar may take, to read and for each token, is limited.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from berth_worker.engine.constraint import Constraint, ConstraintError
from berth_worker.grammar.text import GrammarError

if TYPE_CHECKING:
    from berth_worker.model.interface import Tokenizer

__all__ = ["Grammar", "Guidance", "regex"]

_LONGEST = 1 << 18  # characters

_LIMITS = LLParserLimits(  # times are llguidance's own estimates
    initial_lexer_fuel=500_000,  # about 10 ms
    max_grammar_size=200_000,  # symbols
    max_items_in_row=1000,
    step_max_items=20_000,  # about 1 ms a token
    step_lexer_fuel=100_000,  # about 7 ms a token
    max_lexer_states=25_000,  # 14 MB
    verbose_errors=False,
)


def regex(pattern: str) -> str:
    """The grammar of a regular expression."""
    return LLMatcher.grammar_from_regex(pattern)


class Guidance:
    """Grammars over one model's tokens.  One thread at a time."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """vocab_size: of the model, whose tokens may be more than the tokenizer's."""
        self._tokens = LLTokenizer(
            TokenizerWrapper(_Spelling(tokenizer, vocab_size)), eos_token=sorted(tokenizer.eos_ids) or None
        )

    def read(self, grammar: str) -> Grammar:
        """grammar: in llguidance's variant of Lark, or its JSON.  Raises GrammarError."""
        if len(grammar) > _LONGEST:
            raise GrammarError(f"found {len(grammar)} characters of grammar; at most {_LONGEST} are right")
        try:
            matcher = LLMatcher(self._tokens, grammar, log_level=0, limits=_LIMITS)
        except ValueError as error:
            raise GrammarError(_line(str(error))) from error
        matcher.compute_bitmask()  # some are too much from the first token on, or let none come
        if matcher.is_error():
            raise GrammarError(_line(matcher.get_error()))
        return Grammar(matcher)


class Grammar:
    """A grammar, read."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self.ignored: list[str] = matcher.get_grammar_warnings()
        """What of it is not kept to, in words, where that was asked for."""

    def start(self) -> Constraint:
        """An output of which nothing has come."""
        return _Output(self._matcher.deep_copy())


class _Output:
    """See `berth_worker.engine.constraint.Constraint`."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._forced: list[int] | None = None
        """From here on; None: not looked for."""

    @property
    def ended(self) -> bool:
        return self._matcher.is_stopped()

    def forced(self) -> Sequence[int]:
        if self._forced is None:
            self._forced = self._matcher.compute_ff_tokens()
        return self._forced

    def fits(self, tokens: Sequence[int]) -> int:
        return self._matcher.validate_tokens(list(tokens))

    def mask(self) -> bytes:
        mask = self._matcher.compute_bitmask()
        self._check()
        return mask

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()
        # What is forced is spelled once: its rest, spelled again, could be other tokens.
        self._forced = self._forced[1:] or None if self._forced and self._forced[0] == token else None

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(f"the grammar cannot be kept to: {_line(self._matcher.get_error())}")


class _Spelling:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        known = min(tokenizer.vocab_size, vocab_size)
        self.tokens = [tokenizer.token_bytes(token) for token in range(known)] + [b""] * (vocab_size - known)
        self.special_token_ids = sorted(token for token in tokenizer.control_ids if token < vocab_size)
        self.eos_token_id = min(tokenizer.eos_ids, default=None)
        self.bos_token_id = None
        self._longest = max(map(len, self.tokens))
        self._ids: dict[bytes, int] | None = None

    def __call__(self, text: str) -> list[int]:
        """The tokens of what is forced, which are exactly its bytes."""
        wanted = text.encode()  # no text: an AttributeError, from which TokenizerWrapper learns that we take text alone
        for before in (
            "",
            "\n",
        ):  # SentencePiece puts a space in front of a text; no token reaches over this line break
            ids = self._tokenizer.encode(before + text, add_special_tokens=False, parse_special=False)
            for begin in range(min(len(ids), 4)):
                if b"".join(self.tokens[token] for token in ids[begin:]) == wanted:
                    return ids[begin:]
        return self._greedy(wanted)

    def _greedy(self, wanted: bytes) -> list[int]:
        """The longest token, again and again: for a tokenizer that changes texts."""
        if self._ids is None:
            special = set(self.special_token_ids)
            self._ids = {spelled: token for token, spelled in enumerate(self.tokens) if token not in special}
        ids: list[int] = []
        while wanted:
            lengths = range(min(self._longest, len(wanted)), 0, -1)
            length = next((length for length in lengths if wanted[:length] in self._ids), None)
            if length is None:
                break  # no token begins so; what is found is forced, the rest by its bytes
            ids.append(self._ids[wanted[:length]])
            wanted = wanted[length:]
        return ids


def _line(message: str) -> str:
    """In one, without the grammar's text, which is not what the client wrote."""
    message = re.sub(r"^at \d+\(\d+\): |<non-verbose/>|(?m:^ *\d* \|.*|^ +\^+ *$)", "", message)
    return " ".join(message.split())
