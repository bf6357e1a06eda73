"""Which YAML documents do the files, folders and standard input that a person named hold?"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from berth_operator.cli.problems import InputProblem

_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_STDIN = "-"


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document that is a mapping."""

    where: str
    body: Mapping[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML as the API server reads it: a date is text, and a key given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice in one mapping: remove one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


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
        yield "standard input", sys.stdin.read()
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
    try:
        bodies = list(yaml.load_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}: " if mark else ""
        problems.append(InputProblem(where, "", "", f"{line}is not valid YAML: {error.problem or error.context}"))
        return
    except (yaml.YAMLError, RecursionError) as error:
        problems.append(InputProblem(where, "", "", f"is not valid YAML: {error}"))
        return
    numbered = len(bodies) > 1
    for number, body in enumerate(bodies, start=1):
        if body is None:
            continue
        place = f"{where} document {number}" if numbered else where
        if not isinstance(body, dict):
            found = type(body).__name__
            problems.append(InputProblem(place, "", "", f"found a {found}; write an object with apiVersion and kind"))
        elif str(body.get("kind", "")).endswith("List") and isinstance(body.get("items"), list):
            items = enumerate(body["items"], start=1)
            documents.extend(Document(f"{place} item {n}", item) for n, item in items if isinstance(item, dict))
        else:
            documents.append(Document(place, body))
