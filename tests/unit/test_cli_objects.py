"""Are files read as strictly as an API server reads them, and does every complaint say what to write instead?"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from berth_operator.cli.objects import Objects, read_objects
from berth_operator.cli.problems import InputProblem
from berth_operator.cli.snapshots import overlay
from berth_operator.cluster.observe import Observation
from hypothesis import given, settings
from hypothesis import strategies as st

POOL: dict[str, Any] = {
    "apiVersion": "berth.dev/v1alpha1",
    "kind": "InferencePool",
    "metadata": {"name": "chat"},
    "spec": {
        "model": {"name": "smollm2-135m-instruct"},
        "workload": {"class": "Agentic", "demand": {"requestsPerSecond": "4"}},
    },
}
Read = Callable[..., tuple[Objects, list[InputProblem]]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def write(*bodies: Any) -> tuple[Objects, list[InputProblem]]:
        file = tmp_path / "objects.yaml"
        file.write_text("---\n".join(b if isinstance(b, str) else yaml.safe_dump(b) for b in bodies))
        return read_objects([str(file)])

    return write


def changed(path: str, value: Any) -> dict[str, Any]:
    """The pool with one field replaced (or removed, for None)."""
    body: dict[str, Any] = yaml.safe_load(yaml.safe_dump(POOL))
    *parents, last = path.split(".")
    at = body
    for part in parents:
        at = at.setdefault(part, {})
    if value is None:
        del at[last]
    else:
        at[last] = value
    return body


def test_a_sound_pool_is_read_and_lands_in_the_default_namespace(read: Read) -> None:
    objects, problems = read(POOL)
    assert not problems
    assert [pool.key for pool in objects.pools] == ["default/chat"]


@pytest.mark.parametrize(
    ("path", "value", "field", "message"),
    [
        ("spec.modle", {}, "spec.modle", "unknown field: did you mean model?"),
        (
            "spec.workload.shape",
            {"prompt_tokens": 3},
            "spec.workload.shape.prompt_tokens",
            "did you mean promptTokens?",
        ),
        ("spec.workload.class", "Agentik", "spec.workload.class", "write one of Agentic, Interactive, Batch"),
        ("spec.workload.demand", None, "spec.workload.demand", "is missing"),
        ("spec.workload.demand.requestsPerSecond", 4, "spec.workload.demand.requestsPerSecond", 'such as "0.638"'),
        ("spec.workload.demand.requestsPerSecond", "0", "spec.workload.demand.requestsPerSecond", "must be above zero"),
        ("spec.workload.shape", {"outputTokens": "9"}, "spec.workload.shape.outputTokens", "without quotes"),
        ("spec.workload.shape", {"outputTokens": 0}, "spec.workload.shape.outputTokens", "found 0: input should be"),
        ("spec.objectives", {"turnLatencyP99": "fast"}, "spec.objectives.turnLatencyP99", "'fast' is not a duration"),
        ("spec.suspend", "yes please", "spec.suspend", "write true or false"),
        ("spec.workload.demand", {}, "spec.workload.demand", "exactly one of requestsPerSecond and concurrentSessions"),
        ("spec.model", {"name": "llama"}, "spec.model", "model.source is required"),
        ("metadata", {"name": "Chat"}, "metadata.name", "write lower-case letters"),
        ("metadata", {"name": "4chat"}, "", "metadata.name also names Services"),
        ("metadata", {}, "metadata.name", "is missing"),
        ("metadata.lables", {}, "metadata.lables", "did you mean labels?"),
        ("kind", "InferencePol", "kind", "did you mean InferencePool?"),
        ("apiVersion", "berth.dev/v1", "apiVersion", "write berth.dev/v1alpha1"),
    ],
)
def test_what_cannot_work_is_named_with_file_object_field_and_remedy(
    read: Read, path: str, value: Any, field: str, message: str
) -> None:
    objects, (problem, *_) = read(changed(path, value))
    assert not objects.pools
    assert problem.where.endswith("objects.yaml")
    assert problem.field == field
    assert message in problem.message


def test_objectives_that_contradict_each_other_are_refused_as_the_api_server_would(read: Read) -> None:
    body = changed("spec.objectives", {"turnLatencyP99": "1s", "interTokenLatencyP99": "60ms"})
    body["spec"]["workload"]["shape"] = {"outputTokens": 180}
    _, (problem,) = read(body)
    assert problem.field == "spec"
    assert "outputTokens x interTokenLatencyP99 is longer than turnLatencyP99" in problem.message


def test_one_bad_document_does_not_hide_the_others(read: Read) -> None:
    objects, problems = read(changed("spec.modle", {}), "[1, 2]\n", changed("metadata.name", "other"))
    assert [pool.metadata.name for pool in objects.pools] == ["other"]
    assert {problem.where.rpartition(" document ")[2] for problem in problems} == {"1", "2"}


def test_an_object_that_is_there_twice_is_named_with_both_places(read: Read) -> None:
    objects, (problem,) = read(POOL, POOL)
    assert len(objects.pools) == 1
    assert problem.item == "InferencePool default/chat"
    assert "is also in" in problem.message
    assert "document 1" in problem.message


def test_a_list_item_that_is_there_twice_is_refused(read: Read) -> None:
    hardware = {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "HardwareClass",
        "metadata": {"name": "x"},
        "spec": {
            "vendor": "A",
            "chip": "B",
            "kind": "CPU",
            "architecture": "arm64",
            "cpus": 2,
            "memoryGiB": 2,
            "memoryBandwidthGBps": 3,
            "capacity": [{"type": "Spot", "usdPerHour": "1"}, {"type": "Spot", "usdPerHour": "2"}],
            "runtime": {"name": "Berth"},
        },
    }
    _, (problem,) = read(hardware)
    assert problem.field == "spec.capacity[1]"
    assert "type Spot is there twice" in problem.message


def test_what_kubectl_get_prints_can_be_read_back(read: Read) -> None:
    item = changed("metadata", {"name": "chat", "namespace": "team", "uid": "u", "managedFields": [{"manager": "x"}]})
    objects, problems = read({"apiVersion": "v1", "kind": "List", "items": [item], "metadata": {}})
    assert not problems
    assert [pool.key for pool in objects.pools] == ["team/chat"]


def test_other_kinds_are_passed_over_and_namespaces_count_for_their_labels(read: Read) -> None:
    objects, problems = read(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "labels": {"team": "a"}}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}},
        POOL,
    )
    assert not problems
    assert objects.remarks == ("passed over 1 x v1/ConfigMap: not of berth.dev",)
    labels = overlay(objects, Observation(), datetime.now(UTC)).namespace_labels["default"]
    assert labels == {"team": "a", "kubernetes.io/metadata.name": "default"}


def test_a_date_without_quotes_stays_text(read: Read) -> None:
    profile = """
apiVersion: berth.dev/v1alpha1
kind: ServingProfile
metadata: {name: p}
spec:
  model: m
  quantization: Int8
  hardwareClass: h
  runtime: Berth
  points: [{concurrency: 1, contextTokens: 9, decodeTokensPerSecond: "5", interTokenLatencyP99: 2ms}]
  prefillTokensPerSecond: "9"
  kvCacheTokens: 100
  provenance: {method: Measured, source: s, date: 2026-11-21}
"""
    objects, problems = read(profile)
    assert not problems
    assert objects.serving_profiles[0].spec.provenance.date == "2026-11-21"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "line 1: is not valid YAML"),
        ("a: 1\na: 2\n", "line 2: is not valid YAML: 'a' is given twice"),
        ("apiVersion: v1\nkind: A\napiVersion: v1\n", "remove one, or write a line '---' between two objects"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("just words", "found a str; write an object with apiVersion and kind"),
    ],
)
def test_text_that_is_no_object_is_refused_with_its_line(read: Read, text: str, message: str) -> None:
    objects, (problem,) = read(text)
    assert objects == Objects()
    assert message in problem.message


def test_a_file_that_is_not_there_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    _, problems = read_objects([str(tmp_path / "none.yaml"), str(tmp_path)])
    assert [problem.message for problem in problems] == [
        "cannot be read: No such file or directory",
        "this folder holds no *.yaml, *.yml or *.json file",
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    field=st.sampled_from(
        ["metadata", "spec", "spec.model", "spec.workload", "spec.workload.demand", "spec.placement"]
    ),
    value=JSON,
)
def test_whatever_stands_in_a_field_is_either_read_or_complained_about(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    file = tmp_path_factory.mktemp("any") / "any.yaml"
    file.write_text(yaml.safe_dump(changed(field, value), allow_unicode=True) if value is not None else "")
    objects, problems = read_objects([str(file)])
    assert len(objects.pools) == (0 if problems or value is None else 1)
    assert all(problem.where == str(file) and problem.message for problem in problems)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metadata: &a {name: x, labels: *a}", "metadata.labels: is an alias of what it stands in: write it out"),
        (f"spec: {{priority: {10**30}}}", "InferencePool: spec.priority: found 100000000000000000000000...: a whole"),
        (f"spec: {{priority: {'9' * 5000}}}", "line 3: is not valid YAML: '999"),
        ("spec: !!int many", "line 3: is not valid YAML: 'many' is no int"),
        ("spec: !!timestamp soon", "line 3: is not valid YAML: 'soon' is no timestamp"),
        (
            "a0: &a0 [1, 1]\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)),
            "has more than 1000000 values once its aliases are written out",
        ),
        (f"spec: {'[' * 3000}", "is not valid YAML: maximum recursion depth exceeded"),
        ("metadata: {name: x, namespace: A_b}", "metadata.namespace: found 'A_b': write lower-case letters"),
    ],
)
def test_what_yaml_can_say_and_an_api_server_cannot_read_is_named(read: Read, text: str, says: str) -> None:
    objects, problems = read(f"apiVersion: berth.dev/v1alpha1\nkind: InferencePool\n{text}\n", POOL)
    assert says in str(problems[0])
    assert len(objects.pools) == 1, "the other document is read all the same"


@pytest.mark.parametrize("metadata", ["team-a", {"name": "team-a", "labels": ["tier"]}, {"name": 3}])
def test_a_namespace_that_is_not_one_is_named(read: Read, metadata: Any) -> None:
    objects, problems = read({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, POOL)
    assert "document 1: Namespace: metadata" in str(problems[0])
    assert not objects.namespace_labels
    assert len(objects.pools) == 1


def test_a_syntax_error_costs_its_own_document_only(read: Read) -> None:
    before, after = (changed("metadata", {"name": name}) for name in ("before", "after"))
    objects, problems = read(before, "spec: [\n", after)
    assert [pool.metadata.name for pool in objects.pools] == ["before", "after"]
    assert len(problems) == 1
    assert ": is not valid YAML: " in str(problems[0])


def test_an_item_of_a_list_that_is_no_object_is_named(read: Read) -> None:
    objects, problems = read({"apiVersion": "v1", "kind": "List", "items": ["chat", POOL]})
    assert "item 1: found a str; write an object" in str(problems[0])
    assert len(objects.pools) == 1
