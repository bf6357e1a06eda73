"""What prompt does a conversation become?  The model's own template says; sandboxed, because it came with the file."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["ChatTemplate"]


class ChatTemplate:
    """A chat template with the helpers that transformers' templates expect: raise_exception, strftime_now, tojson."""

    def __init__(self, source: str | None, *, bos_token: str, eos_token: str) -> None:
        self._source, self._bos, self._eos = source, bos_token, eos_token
        self._compiled: jinja2.Template | None = None

    def render(self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool) -> str:
        """Raises ValueError if there is no template, or it is broken, or it refuses these messages."""
        if self._source is None:
            raise ValueError("this model has no chat template; send a plain prompt instead")
        try:
            if self._compiled is None:
                self._compiled = _environment().from_string(self._source)
            return self._compiled.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._bos,
                eos_token=self._eos,
            )
        except (jinja2.TemplateError, TypeError, OverflowError) as error:
            raise ValueError(f"messages: the model's chat template refuses them: {error}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda layout: datetime.datetime.now().astimezone().strftime(layout)
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
