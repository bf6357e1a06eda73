"""What if a model's chat template never ends, or builds a text that fits nowhere?  It is ended with an error.

Jinja's sandbox bounds neither, and a template may be rendered in the event loop, for which all streams wait.  So calls
of ours are put into the parsed template: into each loop and macro one that looks at the clock, around what grows (text
that is given out or joined, values that are kept) one that counts.  What a single filter or method makes by itself is
not bounded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

__all__ = ["BoundedEnvironment"]

MOST_SECONDS = 2.0
"""CPU seconds of one conversation; 8,000 messages take a fiftieth of that."""
MOST_CHARACTERS = 1 << 26
"""That a template puts together for one conversation, in all; a request's body has a quarter of that at most."""
MOST_BITS = 4096
"""Of a product or a power of integers."""


class _Spent(threading.local):
    """What the conversation that this thread renders may still take."""

    until = 0.0
    characters = 0


_spent = _Spent()


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, **options: Any) -> None:
        """options: those of Jinja's environments."""
        super().__init__(**options)
        self.filters |= {"_tick": _tick, "_count": _count}

    def bounded(self, source: str) -> Callable[..., str]:
        """What renders the template of a source.

        Raises TemplateError if it is none, and when it is called where it goes beyond the bounds.
        """
        template = self.from_string(_Bounds().visit(self.parse(source)))

        def render(**variables: Any) -> str:
            _spent.until, _spent.characters = time.thread_time() + MOST_SECONDS, MOST_CHARACTERS
            return template.render(**variables)

        return render

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """A product or a power. Raises TemplateError if it is too large to be computed."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MOST_BITS:
                raise TemplateError("it computes a number that is too large")
        for many, times in ((left, right), (right, left)):
            if isinstance(times, int):
                _take(many, times)
        return super().call_binop(context, operator, left, right)


@pass_context  # so that Jinja does not call it once, when it compiles
def _tick(_: Context, __: None) -> str:
    if time.thread_time() > _spent.until:
        raise TemplateError(f"it does not end within {MOST_SECONDS:g} s")
    return ""


@pass_context
def _count(_: Context, value: Any) -> Any:
    _take(value, 1)
    return value


def _take(value: Any, times: int) -> None:
    if isinstance(value, str):
        _spent.characters -= len(value) * times
    elif isinstance(value, list | tuple):
        _spent.characters -= len(value) * times * 8  # a pointer each
    if _spent.characters < 0:
        raise TemplateError(f"it puts together more than {MOST_CHARACTERS} characters")


class _Bounds(NodeTransformer):
    """Puts our calls into a parsed template; as filters, which a template cannot change."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the visitor's names
        return self._with_tick(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_counted(piece) for piece in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        return _counted(self.generic_visit(node))

    def visit_Add(self, node: nodes.Add) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(left := node.left, nodes.Filter) and left.name == "_count" and left.node:
            node.left = left.node  # of a + b + c the whole is counted
        return _counted(node)

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.node = _counted(node.node)
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.filter = _filter(node.filter, "_count")
        return node

    def _with_tick(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_filter(nodes.Const(None), "_tick")]))
        return node  # type: ignore[no-any-return]


def _counted(value: Any) -> nodes.Filter:
    return value if isinstance(value, nodes.Filter) and value.name == "_count" else _filter(value, "_count")


def _filter(value: Any, name: str) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None)
