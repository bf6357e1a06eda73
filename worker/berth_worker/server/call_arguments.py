"""What is certain of a call's arguments while a model still writes them?  A JSON object, piece by piece, as JSON."""

from __future__ import annotations

import json
import re

__all__ = ["ArgumentsText", "sendable"]

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
"""Inside of a string."""
_STRUCTURE = re.compile(r'[^"{}\[\]<]+')
"""Outside of strings, without what begins or ends something."""
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^u])")
_BEGUN_ESCAPE = re.compile(
    r"\\(?:u(?:[0-9a-fA-F]{0,3}|[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?)?)?"
)
"""One that may go on: also the first half of a surrogate pair."""


class ArgumentsText:
    """One JSON object, from its brace to the brace that closes it.

    Strings come out as clients read them: with line breaks escaped, which models leave as they are, and with U+FFFD for
    half of a surrogate pair.  What is no JSON beyond that comes out as it is, as OpenAI's does.
    """

    def __init__(self, close: str) -> None:
        """close: a tag that ends the object outside of its strings, closed or not."""
        self._close = close
        self._held = ""
        self._depth = 0
        self._in_string = False
        self.ended = False

    def push(self, text: str) -> tuple[str, str]:
        """What is certain once this text is in, and what of it stands behind the object's end."""
        text, self._held = self._held + text, ""
        found: list[str] = []
        at = 0
        while at < len(text) and not self.ended:
            piece, spelled = self._string(text, at) if self._in_string else self._structure(text, at)
            if not piece and not self.ended:
                self._held = text[at:]
                return "".join(found), ""
            at += len(piece)
            found.append(spelled)
        return "".join(found), text[at:]

    def flush(self) -> str:
        """What is left when the answer has ended."""
        held, self._held = self._held, ""
        return held

    def _string(self, text: str, at: int) -> tuple[str, str]:
        """The next piece and how it is spelled; nothing: more has to come first."""
        if match := _PLAIN.match(text, at):
            return match[0], sendable(match[0])
        if text[at] == "\\":
            begun = _BEGUN_ESCAPE.fullmatch(text, at)
            match = None if begun else _ESCAPE.match(text, at)
            if begun or match is None:
                return ("", "") if begun else ("\\", "\\")
            try:
                return match[0], json.dumps(sendable(json.loads(f'"{match[0]}"')), ensure_ascii=False)[1:-1]
            except ValueError:
                return match[0], match[0]
        self._in_string = text[at] != '"'
        return text[at], json.dumps(text[at])[1:-1] if self._in_string else '"'

    def _structure(self, text: str, at: int) -> tuple[str, str]:
        if match := _STRUCTURE.match(text, at):
            return match[0], match[0]
        if text[at] == "<":
            if text.startswith(self._close, at):
                self.ended = True
                return "", ""
            return ("", "") if self._close.startswith(text[at:]) else ("<", "<")
        self._in_string = text[at] == '"'
        self._depth += (text[at] in "{[") - (text[at] in "}]")
        self.ended = self._depth == 0
        return text[at], text[at]


def sendable(text: str) -> str:
    """With U+FFFD for half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
