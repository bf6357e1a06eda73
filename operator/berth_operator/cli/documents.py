"""Which YAML documents do the files, folders and standard input that a person named hold?"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import yaml

from berth_operator.cli.problems import InputProblem
from berth_operator.strict_yaml import StrictLoader

_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_STDIN = "-"
_DOCUMENT_START = re.compile(r"^---(?=\s|\Z)", re.MULTILINE)
_MOST_VALUES: Final = 1_000_000
"""In one object, each alias counted as what it stands for; an API server takes a few MB."""
_BITS: Final = 64


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document that is a mapping."""

    where: str
    body: Mapping[str, Any]


def read_documents(sources: Sequence[str]) -> tuple[list[Document], list[InputProblem]]:
    """The documents of every source in order: a file, a folder (its *.yaml, *.yml and *.json), or `-` for stdin.

    A `List` object counts as the objects in it.  What cannot be read is a problem, and the rest is read.
    """
    documents: list[Document] = []
    problems: list[InputProblem] = []
    for source in sources:
        for where, text in _texts(source, problems):
            _parse(where, text, documents, problems)
    return documents, problems


def _texts(source: str, problems: list[InputProblem]) -> Iterator[tuple[str, str]]:
    if source == _STDIN:
        try:
            yield "standard input", sys.stdin.read()
        except UnicodeDecodeError as error:
            problems.append(InputProblem("standard input", "", "", f"is not UTF-8 text (byte {error.start})"))
        return
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
        if not files:
            problems.append(InputProblem(source, "", "", "this folder holds no *.yaml, *.yml or *.json file"))
    else:
        files = [path]
    for file in files:
        try:
            yield str(file), file.read_text(encoding="utf-8")
        except OSError as error:
            problems.append(InputProblem(str(file), "", "", f"cannot be read: {error.strerror or error}"))
        except UnicodeDecodeError as error:
            problems.append(InputProblem(str(file), "", "", f"is not UTF-8 text (byte {error.start})"))


def _parse(where: str, text: str, documents: list[Document], problems: list[InputProblem]) -> None:
    """What cannot be read costs its own document, not those before and after it."""
    starts = [0, *(found.start() for found in _DOCUMENT_START.finditer(text) if found.start() > 0)]
    bodies: list[Any] = []
    for start, end in pairwise([*starts, len(text)]):
        try:
            bodies += yaml.load_all(text[start:end], Loader=StrictLoader)
            continue
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            line = f"line {text.count(chr(10), 0, start) + mark.line + 1}: " if mark else ""
            message = f"{line}is not valid YAML: {error.problem or error.context}"
        except (yaml.YAMLError, RecursionError) as error:
            message = f"is not valid YAML: {str(error).partition(chr(10))[0]}"
        problems.append(InputProblem(where, "", "", message))
        bodies.append(None)
    numbered = len(bodies) > 1
    for number, body in enumerate(bodies, start=1):
        place = f"{where} document {number}" if numbered else where
        items = body.get("items") if isinstance(body, dict) and str(body.get("kind", "")).endswith("List") else None
        if isinstance(items, list):
            for n, item in enumerate(items, start=1):
                _take(f"{place} item {n}", item, documents, problems)
        elif body is not None:
            _take(place, body, documents, problems)


def _take(place: str, body: Any, documents: list[Document], problems: list[InputProblem]) -> None:
    if not isinstance(body, dict):
        found = type(body).__name__
        problems.append(InputProblem(place, "", "", f"found a {found}; write an object with apiVersion and kind"))
    elif unreadable := _unreadable(body):
        problems.append(InputProblem(place, _called(body), *unreadable))
    else:
        documents.append(Document(place, body))


def _called(body: Mapping[str, Any]) -> str:
    """Kind and name, as far as they are there."""
    metadata = body.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return " ".join(part for part in (body.get("kind"), name) if isinstance(part, str))


def _unreadable(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Field and message of what YAML can say and JSON, which an API server takes, cannot."""
    waiting: list[tuple[str, Any, tuple[int, ...]]] = [("", body, ())]
    for _ in range(_MOST_VALUES):
        if not waiting:
            return None
        path, value, above = waiting.pop()
        if isinstance(value, int) and value.bit_length() >= _BITS:
            return path, f"found {str(value)[:24]}...: a whole number has at most {_BITS} bits"
        if isinstance(value, dict | list):
            if id(value) in above:
                return path, "is an alias of what it stands in: write it out"
            inner = (*above, id(value))
            named = (
                [(f"{path}[{n}]", item, inner) for n, item in enumerate(value)]
                if isinstance(value, list)
                else [(f"{path}.{key}".removeprefix("."), item, inner) for key, item in value.items()]
            )
            waiting += reversed(named)
    return "", f"has more than {_MOST_VALUES} values once its aliases are written out: make it smaller"
