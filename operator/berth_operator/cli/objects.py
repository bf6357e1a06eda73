"""Which pools, hardware classes and serving profiles do the files describe?

Strict: what an API server would refuse is refused here, too.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from berth_operator.api import HardwareClass, InferencePool, ServingProfile
from berth_operator.api.meta import ObjectMeta, Resource
from berth_operator.api.names import API_VERSION, GROUP
from berth_operator.cli.documents import Document, read_documents
from berth_operator.cli.problems import InputProblem
from berth_operator.cli.schema_rules import schema_at, violations
from berth_operator.planner import AtFault

KINDS: Final = ("InferencePool", "HardwareClass", "ServingProfile")
_METADATA = frozenset(
    {"name", "namespace", "uid", "generation", "resourceVersion", "labels", "annotations", "creationTimestamp"}
)
_METADATA_OF_SERVERS = frozenset(  # there in what `kubectl get -o yaml` prints, and nothing that a plan needs
    {"managedFields", "ownerReferences", "finalizers", "generateName", "selfLink", "deletionTimestamp",
     "deletionGracePeriodSeconds"}
)  # fmt: skip
_HINTS = {  # pydantic's error types in the words of someone who writes YAML
    "int_type": "write a whole number, without quotes",
    "int_from_float": "write a whole number",
    "string_type": "write text; a number or true/false needs quotes",
    "bool_type": "write true or false, without quotes",
    "list_type": "write a list: lines that start with '- '",
    "dict_type": "write fields below it, indented",
    "model_type": "write fields below it, indented",
    "model_attributes_type": "write fields below it, indented",
}

_OF_PATTERNS = {  # where neither the pattern nor what the field is for says what to write
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$": "write lower-case letters, digits, '-' and '.', the first and last no '-' or"
    " '.'",
    r"^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$": "write a host name in lower-case letters, such as chat.example.org",
}

_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_NAMESPACE = re.compile(r"(?=.{1,63}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?")

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True)
class Objects:
    """Everything that a plan is made from, as found in files or in a cluster."""

    pools: tuple[InferencePool, ...] = ()
    hardware_classes: tuple[HardwareClass, ...] = ()
    serving_profiles: tuple[ServingProfile, ...] = ()
    namespace_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    """What a person should know and that is no error."""
    unreadable: tuple[AtFault, ...] = ()
    """Hardware classes that are there and cannot be taken."""


def read_objects(sources: Sequence[str], namespace: str = "default") -> tuple[Objects, list[InputProblem]]:
    """Objects from files, folders and `-` (standard input); pools that name no namespace are in `namespace`.

    Every problem is returned, and the objects are those without one.  Namespaces count for their labels; objects of
    other API groups are passed over with a remark.
    """
    return read_bodies(sources, (), namespace)


def read_bodies(
    sources: Sequence[str], bodies: Sequence[tuple[str, Mapping[str, Any]]], namespace: str = "default"
) -> tuple[Objects, list[InputProblem]]:
    """As `read_objects`, with objects that are in memory already after those of the files, each (where, body)."""
    documents, problems = read_documents(sources)
    documents += [Document(where, body) for where, body in bodies]
    found: dict[tuple[str, str, str], tuple[Resource, str]] = {}
    labels: dict[str, Mapping[str, str]] = {}
    passed_over: dict[str, int] = {}
    unreadable: list[AtFault] = []
    for document in documents:
        kind, group = str(document.body.get("kind", "")), str(document.body.get("apiVersion", "")).partition("/")[0]
        if group == GROUP or (kind in KINDS and not group):
            before = len(problems)
            resource = _resource(document, kind, namespace, problems)
            if resource is None:
                if kind == "HardwareClass":
                    unreadable += _at_fault(document, problems[before:])
                continue
            key = (kind, resource.metadata.namespace or "", resource.metadata.name)
            if key in found:
                what = _named(kind, resource.metadata.namespace, resource.metadata.name)
                problems.append(
                    InputProblem(document.where, what, "", f"is also in {found[key][1]}: keep one of the two")
                )
            else:
                found[key] = resource, document.where
        elif kind == "Namespace":
            _read_namespace(document, labels, problems)
        else:
            passed_over[f"{group or '?'}/{kind or '?'}"] = passed_over.get(f"{group or '?'}/{kind or '?'}", 0) + 1
    remarks = tuple(f"passed over {count} x {what}: not of {GROUP}" for what, count in sorted(passed_over.items()))
    return Objects(
        pools=_of(InferencePool, found),
        hardware_classes=_of(HardwareClass, found),
        serving_profiles=_of(ServingProfile, found),
        namespace_labels=labels,
        remarks=remarks,
        unreadable=tuple(unreadable),
    ), problems


def _at_fault(document: Document, problems: Sequence[InputProblem]) -> list[AtFault]:
    """A class as a plan knows it that does not even parse; none without a name."""
    metadata = document.body.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    said = "; ".join(f"{p.field}: {p.message}" if p.field else p.message for p in problems)
    return [AtFault(name, said)] if isinstance(name, str) and name else []


def _read_namespace(document: Document, labels: dict[str, Mapping[str, str]], problems: list[InputProblem]) -> None:
    """Its labels, by its name."""
    try:
        metadata = ObjectMeta.model_validate(document.body.get("metadata") or {}, strict=True, extra="ignore")
    except ValidationError as error:
        first = error.errors()[0]
        where = _path(("metadata", *first["loc"]))
        hint = _HINTS.get(first["type"]) or first["msg"]
        problems.append(InputProblem(document.where, "Namespace", where, f"found {json.dumps(first['input'])}: {hint}"))
    else:
        labels[metadata.name] = metadata.labels


def _of(model: type[R], found: Mapping[tuple[str, str, str], tuple[Resource, str]]) -> tuple[R, ...]:
    return tuple(resource for resource, _ in found.values() if isinstance(resource, model))


def _named(kind: str, namespace: str | None, name: str) -> str:
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def _resource(document: Document, kind: str, namespace: str, problems: list[InputProblem]) -> Resource | None:
    """The object of one document; None, with a problem for each reason, when it cannot be taken."""
    models = {"InferencePool": InferencePool, "HardwareClass": HardwareClass, "ServingProfile": ServingProfile}
    body = dict(document.body)
    metadata = body.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    name = str(metadata.get("name") or "")
    if kind == "InferencePool":
        metadata.setdefault("namespace", namespace)
    else:
        metadata.pop("namespace", None)  # cluster-scoped: kubectl passes over it, too
    what = _named(kind, metadata.get("namespace"), name or "(no name)")

    def problem(path: str, message: str) -> None:
        problems.append(InputProblem(document.where, what, path, message))

    before = len(problems)
    if kind not in models:
        near = difflib.get_close_matches(kind, models, 1)
        right = f"did you mean {near[0]}?" if near else f"kinds of {GROUP} are {', '.join(models)}"
        problem("kind", f"found {kind!r}: {right}")
        return None
    if body.get("apiVersion") != API_VERSION:
        found = f"found {body['apiVersion']!r}" if "apiVersion" in body else "is missing"
        problem("apiVersion", f"{found}: write {API_VERSION}")
        return None
    if not name:
        problem("metadata.name", "is missing: give the object a name")
    elif not _NAME.fullmatch(name):
        problem("metadata.name", f"found {name!r}: write lower-case letters, digits, '-' and '.', at most 253")
    in_namespace = metadata.get("namespace")
    if isinstance(in_namespace, str) and not _NAMESPACE.fullmatch(in_namespace):
        problem("metadata.namespace", f"found {in_namespace!r}: write lower-case letters, digits and '-', at most 63")
    for unknown in sorted(metadata.keys() - _METADATA - _METADATA_OF_SERVERS):
        problem(f"metadata.{unknown}", _unknown(unknown, sorted(_METADATA)))
    body["metadata"] = {key: value for key, value in metadata.items() if key in _METADATA}
    try:
        resource: Resource = models[kind].model_validate_json(
            json.dumps(body, default=str), strict=True, extra="forbid", by_alias=True, by_name=False
        )
    except ValidationError as error:
        for details in error.errors():
            problem(_path(details["loc"]), _message(kind, dict(details)))
        return None
    if len(problems) == before:  # the rules take what they speak of for given
        for path, message in violations(kind, body):
            problem(path, message)
    return resource if len(problems) == before else None


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _message(kind: str, details: Mapping[str, Any]) -> str:
    """One pydantic error as: what was found, and what would be right."""
    location, error, found = details["loc"], details["type"], details["input"]
    schema = schema_at(kind, location)
    if error == "extra_forbidden":
        fields = sorted(schema_at(kind, location[:-1]).get("properties", {}))
        return _unknown(str(location[-1]), fields)
    if error == "missing":
        hint = schema.get("description") or _options(schema) or _fields(schema)
        return "is missing" + (f": {hint}" if hint else "")
    text = str(details["msg"]).removeprefix("Value error, ")
    if error == "value_error":  # our own: they say what was found and what to write
        return text
    right = _options(schema) or _HINTS.get(error) or text[:1].lower() + text[1:]
    if error == "string_pattern_mismatch":
        right = _OF_PATTERNS.get(details["ctx"]["pattern"]) or schema.get("description") or right
    shown = json.dumps(found, default=str)
    return f"found {shown if len(shown) <= 80 else shown[:77] + '...'}: {right}"


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.7)
    if near:
        return f"unknown field: did you mean {near[0]}?"
    return f"unknown field: there are {', '.join(known)}" if known else "unknown field: remove it"


def _options(schema: Mapping[str, Any]) -> str:
    return f"write one of {', '.join(map(str, schema['enum']))}" if "enum" in schema else ""


def _fields(schema: Mapping[str, Any]) -> str:
    return f"it needs {', '.join(schema['required'])}" if schema.get("required") else ""
