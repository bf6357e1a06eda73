"""Does an output keep to its grammar, whatever the model says, and is what cannot be kept to refused in time?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import jsonschema
import numpy as np
import pytest
from berth_worker.engine.constraint import Constraint, ConstraintError
from berth_worker.engine.request import Request, SamplingParams
from berth_worker.engine.sampling import Sampler
from berth_worker.engine.speculation import Acceptance, Drafter
from berth_worker.grammar import text as grammar
from berth_worker.grammar.guidance import Guidance, regex
from berth_worker.grammar.text import Call, GrammarError
from hypothesis import given, settings

if TYPE_CHECKING:
    from berth_worker.model.interface import LoadedModel, Tokenizer

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


@pytest.fixture(scope="module")
def tokenizer(loaded: LoadedModel) -> Tokenizer:
    return loaded.tokenizer


@pytest.fixture(scope="module")
def guidance(tokenizer: Tokenizer) -> Guidance:
    return Guidance(tokenizer, tokenizer.vocab_size)


@pytest.fixture
def fits(guidance: Guidance, tokenizer: Tokenizer) -> Callable[[str, str], str]:
    """How far a text keeps to a grammar: "ended", "may end", "goes on", or what of it was taken."""

    def read(text: str, said: str) -> str:
        output = guidance.read(text).start()
        ids = tokenizer.encode(said, add_special_tokens=False, parse_special=False)
        taken = output.fits(ids)
        if taken < len(ids):
            return tokenizer.decode(ids[:taken])
        for token in ids:
            assert not output.ended
            output.accept(token)
        if output.ended:
            return "ended"
        return "may end" if allowed(output)[min(tokenizer.eos_ids)] else "goes on"

    return read


def allowed(output: Constraint) -> Any:
    return np.unpackbits(np.frombuffer(output.mask(), np.uint8), bitorder="little")


def say(output: Constraint, rng: np.random.Generator, tokenizer: Tokenizer, **params: Any) -> tuple[str, bool]:
    """What a model of random logits says, and whether it came to its end."""
    request = Request("r", [1], SamplingParams(**params), 200)
    sampler = Sampler(request, tokenizer.eos_ids, output)
    while request.generated < request.max_tokens:
        logits = rng.normal(size=tokenizer.vocab_size).astype(np.float32)
        token = sampler.next(logits, int(logits.argmax()))
        request.tokens.append(token)
        if token in tokenizer.eos_ids:
            return tokenizer.decode(request.output_tokens), True
        output.accept(token)
        if output.ended:
            return tokenizer.decode(request.output_tokens), True
    return "", False


names = st.text(st.sampled_from('abcé"\\ /{}:,'), min_size=1, max_size=5)
leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.tuples(st.integers(-50, 50), st.integers(0, 2000)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
    ),
    st.lists(names | st.integers() | st.none(), min_size=1, max_size=4).map(lambda values: {"enum": values}),
    st.integers(0, 6).map(lambda n: {"type": "string", "minLength": n // 2, "maxLength": n}),
    st.just({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"}),
    st.sampled_from(["date", "ipv4", "uuid"]).map(lambda name: {"type": "string", "format": name}),
)


def closed(properties: dict[str, Any], optional: Sequence[str]) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.dictionaries(names, inner, max_size=3), st.lists(names, max_size=2)).map(lambda a: closed(*a)),
        inner.map(lambda item: {"type": "array", "items": item, "minItems": 1, "maxItems": 3}),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(schema=schemas, seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 1.0]))
def test_whatever_the_model_says_what_has_ended_is_true_to_its_schema(
    guidance: Guidance, tokenizer: Tokenizer, schema: dict[str, Any], seed: int, temperature: float
) -> None:
    output = guidance.read(grammar.json_value(schema)).start()
    text, ended = say(output, np.random.default_rng(seed), tokenizer, temperature=temperature, seed=seed)
    if ended:
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"const": {"a": [1, None]}},
        {"type": ["integer", "null"], "minimum": 3, "exclusiveMaximum": 7},
        {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 100},
        {"type": "number", "minimum": 0.5, "exclusiveMaximum": 2},
        {"type": "array", "prefixItems": [{"const": 1}, {"enum": ["a"]}], "items": False, "minItems": 2},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
        {"type": "object", "patternProperties": {"^a{1,3}$": {"const": 1}}, "additionalProperties": False},
        {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "additionalProperties": {"const": 3}},
        {"$defs": {"t": {"enum": [1, {"$ref": "#"}]}}, "allOf": [{"$ref": "#/$defs/t"}, {"type": "integer"}]},
        {"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 9}]},
        {"anyOf": [{"const": "x"}, {"type": "string", "minLength": 2, "maxLength": 3}]},
        {"oneOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[ab]{2}$"}]},
        *({"type": "string", "format": name} for name in ("date", "date-time", "ipv4", "ipv6", "uuid")),
    ],
)
def test_every_keyword_that_we_say_is_kept_to_is(
    guidance: Guidance, tokenizer: Tokenizer, schema: dict[str, Any]
) -> None:
    grammar.check_schema(schema)
    read = guidance.read(grammar.json_value(schema))
    valid = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    said = [say(read.start(), np.random.default_rng(seed), tokenizer, seed=seed) for seed in range(6)]
    assert any(ended for _, ended in said)
    for text, ended in said:
        if ended:
            valid.validate(json.loads(text))


def test_outputs_of_one_grammar_do_not_know_of_each_other(guidance: Guidance, tokenizer: Tokenizer) -> None:
    read = guidance.read(grammar.choice(["yes", "no"]))
    first, second = read.start(), read.start()
    first.accept(tokenizer.encode("no")[0])
    assert first.ended
    assert not second.ended
    assert second.fits(tokenizer.encode("yes")) == 1


def test_what_is_forced_comes_as_a_model_would_spell_it(guidance: Guidance, tokenizer: Tokenizer) -> None:
    output = guidance.read(grammar.json_value(CITY)).start()
    begun = list(output.forced())
    assert begun == tokenizer.encode('{"city":')
    for index, token in enumerate(begun):
        assert list(output.forced()) == begun[index:]
        assert np.flatnonzero(allowed(output)).tolist() == [token]
        output.accept(token)
    assert not output.forced()


# -- calls of tools --------------------------------------------------------------------------------------------------


def tagged(name: str, schema: Mapping[str, Any]) -> Call:
    before = f'<tool_call>\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments":'
    return Call(name, before, "}\n</tool_call>", schema, strict=True, tag="<tool_call>")


def bare(name: str, schema: Mapping[str, Any]) -> Call:
    return Call(name, f'{{"name": "{name}", "parameters":', "}", schema, strict=True)


ODD = 'weather é"😀'
WEATHER = (
    f'<tool_call>\n{{"name": {json.dumps(ODD, ensure_ascii=False)}, "arguments": {{"city": "Oslo"}}}}\n</tool_call>'
)
TIME = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
TAGGED = [tagged(ODD, CITY | {"additionalProperties": False}), tagged("time", NOTHING)]
BARE_WEATHER = '{"name": "weather", "parameters": {"city": "Oslo"}}'
BARE_TIME = '{"name": "time", "parameters": {}}'
# a reference is to the schema that it stands in
PLACE = {"$defs": {"name": {"enum": ["Oslo"]}}, "type": "object", "properties": {"city": {"$ref": "#/$defs/name"}}}
BARE = [bare("weather", PLACE | {"additionalProperties": False, "required": ["city"]}), bare("time", NOTHING)]
ANSWER = {"$defs": {"name": {"type": "integer"}}, "properties": {"n": {"$ref": "#/$defs/name"}}, "required": ["n"]}
ANSWER |= {"type": "object", "additionalProperties": False}


@pytest.mark.parametrize(
    ("text", "said", "found"),
    [
        (grammar.arguments(TAGGED[0]), ' {"city": "Oslo"}', "ended"),
        (grammar.arguments(TAGGED[1]), " {}", "ended"),
        (grammar.calls(TAGGED, several=False), WEATHER, "ended"),
        (grammar.calls(TAGGED, several=False), f"{TIME}\n{TIME}", TIME),
        (grammar.calls(TAGGED, several=True), f"{WEATHER}\n{TIME}", "may end"),
        (grammar.calls(TAGGED, several=True), "\n".join([TIME] * grammar.MOST_CALLS), "ended"),
        (grammar.calls(TAGGED, several=True), "Hello", ""),
        (grammar.calls(TAGGED, several=True), TIME.replace("{}", '{"a": 1}'), TIME.partition(" {}")[0]),
        (grammar.calls(BARE, several=True), f"{BARE_WEATHER}; {BARE_TIME}", "may end"),
        (grammar.json_value_or_calls(ANSWER, TAGGED, several=True), f"{TIME}\n{WEATHER}", "may end"),
        (grammar.json_value_or_calls(ANSWER, TAGGED, several=True), '{"n": 12}', "ended"),
        (grammar.json_value_or_calls(ANSWER, BARE, several=True), '{"n": 1}', "ended"),
        (grammar.json_value_or_calls(ANSWER, BARE, several=True), BARE_WEATHER, "ended"),
        (grammar.json_value_or_calls(ANSWER, BARE, several=True), BARE_WEATHER.replace("Oslo", "Rome"), None),
        (grammar.json_value_or_calls(ANSWER, BARE, several=True), '{"n": "one"}', '{"n":'),
        (grammar.text_with_calls(TAGGED), "", "may end"),
        (grammar.text_with_calls(TAGGED), "a < b <tool_cal> {", "may end"),
        (grammar.text_with_calls(TAGGED), f"Let me see. {WEATHER}\nand\n{TIME} done", "may end"),
        (grammar.text_with_calls(TAGGED), f"So {TIME.replace('{}', '[]')}", f"So {TIME.partition(' {}')[0]}"),
        (grammar.text_with_calls(TAGGED), 'So <tool_call>\n{"name": "other"', 'So <tool_call>\n{"name": "'),
        (grammar.text_with_calls(BARE), "", "may end"),
        (grammar.text_with_calls(BARE), "It is {so}", "may end"),
        (grammar.text_with_calls(BARE), f"{BARE_TIME}; {BARE_WEATHER}", "may end"),
        (grammar.text_with_calls(BARE), '{"name": "other"', '{"name": "'),
        (grammar.text_without("<tool_call>"), "", "may end"),
        (grammar.text_without("<tool_call>"), "a <tool> < <tool_call\n<tool_calls> {", "may end"),
        (grammar.text_without("<tool_call>"), "a\n<<tool_call>", "a\n<<tool_call"),
        (grammar.choice(["yes", 'n"o\n']), 'n"o\n', "ended"),
        (grammar.json_value({"type": "object"}), '{"a": [1, 2.5e3, null, {"b": "é"}]}', "ended"),
        (grammar.json_value({"type": "object"}), '{"a":  1}', '{"a":'),
        (grammar.json_value({"type": "integer"}), "1234567890123456789", "ended"),
        (grammar.json_value({"type": "integer"}), "-" + "1" * 20, "-" + "1" * 19),
        (grammar.json_value({"enum": [{"type": "integer"}]}), '{"type": "integer"}', "ended"),
        (regex(r"[a-z]+/\d{2}"), "ab/12", "ended"),
        (regex(r"a+"), "aa", "may end"),
    ],
)
def test_a_grammar_takes_what_it_should(
    fits: Callable[[str, str], str], text: str, said: str, found: str | None
) -> None:
    assert found is None or fits(text, said) == found
    assert found is not None or "Rome" not in fits(text, said)


A: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
B: dict[str, Any] = {"type": "object", "properties": {"b": {"type": "integer"}}}
DEFINED: dict[str, Any] = {"$defs": {"a": A}}
REF = {"$ref": "#/$defs/a"}
KINDS = [{"type": "object", "properties": {"a": {"const": kind}}, "required": ["a"]} for kind in ("x", "y")]


@pytest.mark.parametrize(
    ("schema", "said", "takes"),
    [
        (A, '{"a": 1, "b": 2}', False),
        (A | {"additionalProperties": True}, '{"a": 1, "b": 2}', True),
        ({"type": "object"}, '{"a": 1, "b": 2}', True),
        (B | {"required": ["c"]}, '{"b": 1, "c": 2}', True),
        ({"type": "array", "items": A}, '[{"a": 1}, {"a": 1, "b": 2}]', False),
        ({"anyOf": [{"type": "null"}, A]}, '{"a": 1, "b": 2}', False),
        ({"oneOf": KINDS, "discriminator": {"propertyName": "a"}}, '{"a": "y", "b": 2}', False),
        (DEFINED | {"type": "array", "items": REF}, '[{"a": 1, "b": 2}]', False),
        (DEFINED | {"allOf": [REF], "description": "as pydantic had it"}, '{"a": 1, "b": 2}', False),
        (DEFINED | {"allOf": [REF, B]}, '{"a": 1, "b": 2}', True),
        (B | {"anyOf": [A, {"required": ["b"]}]}, '{"b": 2, "a": 1}', True),
        (B | {"allOf": [A]}, '{"b": 2, "a": 1}', True),
        ({"type": "object", "properties": {"properties": A}}, '{"properties": {"a": 1}}', True),
        ({"type": "object", "properties": {"properties": A}}, '{"additionalProperties": 1}', False),
        ({"const": {"properties": {"a": 1}}}, '{"properties": {"a": 1}}', True),
    ],
)
def test_an_object_has_the_properties_that_its_schema_lists_unless_that_says_more(
    fits: Callable[[str, str], str], schema: dict[str, Any], said: str, takes: bool
) -> None:
    assert (fits(grammar.json_value(schema), said) in ("ended", "may end")) is takes


# -- in the engine ---------------------------------------------------------------------------------------------------


class Only:
    """A constraint of a vocabulary of at most 64: these tokens, and no others."""

    ended = False

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def forced(self) -> Sequence[int]:
        return self.tokens if len(self.tokens) == 1 else ()

    def fits(self, tokens: Sequence[int]) -> int:
        return next((i for i, token in enumerate(tokens) if token not in self.tokens), len(tokens))

    def mask(self) -> bytes:
        return sum(1 << token for token in self.tokens).to_bytes(8, "little")

    def accept(self, token: int) -> None:
        assert token in self.tokens


LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.15, 0.05], dtype=np.float32))


def next_of(output: Constraint, ends: Sequence[int] = (), **params: Any) -> int:
    sampler = Sampler(Request("r", [1], SamplingParams(**params), 9), ends, output)
    return sampler.next(LOGITS, int(LOGITS.argmax()))


def test_tokens_come_as_often_as_their_share_of_what_may_come() -> None:
    draws = 4000
    counts = Counter(next_of(Only(0, 2, 3), seed=seed) for seed in range(draws))
    assert counts.keys() == {0, 2, 3}
    for token, p in {0: 0.125, 2: 0.25, 3: 0.625}.items():
        assert abs(counts[token] / draws - p) <= 4 * np.sqrt(p * (1 - p) / draws), f"token {token}"


def test_the_likeliest_of_what_may_come_comes_whatever_is_added_to_others() -> None:
    assert next_of(Only(0, 1, 3), temperature=0) == 1
    assert next_of(Only(0, 2, 3), temperature=0) == 3
    assert next_of(Only(5), temperature=0) == 5
    assert next_of(Only(0, 2, 3), temperature=0, logit_bias={1: 100, 2: 50}) == 2
    assert next_of(Only(0, 3), temperature=0, top_k=1, min_p=1.0) == 3


def test_where_nearly_all_may_come_what_may_not_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=64).astype(np.float32)
    barred = {0, 17, int(logits.argmax())}
    output = Only(*(token for token in range(64) if token not in barred))
    best = max(output.tokens, key=lambda token: logits[token])
    weights = np.exp(logits[list(output.tokens)]) / np.exp(logits[list(output.tokens)]).sum()

    def drawn(**params: Any) -> int:
        sampler = Sampler(Request("r", [1], SamplingParams(**params), 9), (), output)
        return sampler.next(logits, int(logits.argmax()))

    counts = Counter(drawn(seed=seed) for seed in range(4000))
    assert not counts.keys() & barred
    for token, p in zip(output.tokens, weights, strict=True):
        assert abs(counts[token] / 4000 - p) <= 4.5 * np.sqrt(p * (1 - p) / 4000), f"token {token}"
    assert drawn(temperature=0) == best
    monkeypatch.setattr("berth_worker.engine.sampling._uniform", lambda *_: 0.0)
    assert drawn(seed=1) == best, "token 0 comes first, and may not"


def test_what_has_to_end_ends_before_min_tokens() -> None:
    assert next_of(Only(2, 4), ends=[4], temperature=0, min_tokens=5) == 2
    assert next_of(Only(4, 5), ends=[4, 5], temperature=0, min_tokens=5) == 4


def test_drafts_are_what_is_forced_or_cut_where_the_grammar_ends_them() -> None:
    request = Request("r", [1, 2, 3, 1, 2, 3, 4, 1, 2, 3], SamplingParams(), 100)
    for output, guess, chance in ((Only(1, 4), [4, 1], None), (Only(2, 3), [], None), (Only(5), [5], 1.0)):
        acceptance = Acceptance()
        drafter = Drafter(request, acceptance, output)
        drafter.look()
        assert drafter.guess == guess
        assert drafter.chance(0) == (acceptance.chance(3) if chance is None else chance)
        drafter.judge([9])
        assert (acceptance.chance(3) < Acceptance().chance(3)) is (guess == [4, 1]), "what is forced teaches nothing"


# -- bounds ----------------------------------------------------------------------------------------------------------


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def all_of(*patterns: str) -> dict[str, Any]:
    return {"allOf": [{"type": "string", "pattern": pattern} for pattern in patterns]}


HOSTILE: list[tuple[dict[str, Any], str]] = [
    (nested(60), "more than 100 levels"),
    (nested(900), "more than 100 levels"),
    ({"type": "object", "properties": {f"p{i}": {} for i in range(1001)}}, "1001 properties; at most 1000"),
    (all_of(*(f".*{i}.*" for i in range(40))), "40 patterns and formats"),
    ({"pattern": "a", "anyOf": [{"format": "date"}] * 10}, "11 patterns and formats"),
    ({"type": "integer", "multipleOf": 999_983}, "multipleOf above 10000"),
    ({"type": "number", "multipleOf": 12.3457}, "multipleOf above 10000"),
    ({"allOf": [{"type": "integer", "multipleOf": prime} for prime in (997, 1009)]}, "multipleOf above 10000"),
    ({"allOf": [{"type": "number", "multipleOf": 1e300}, {"multipleOf": 1e-300}]}, "multipleOf above 10000"),
    ({"enum": ["x" * 100 + str(i) for i in range(3000)]}, "characters of grammar; at most"),
    ({"type": "string", "pattern": "^(?=a)b"}, "look-around"),
    ({"$ref": "#"}, ""),
    ({"$ref": "https://example.org/schema.json"}, "example.org"),
    ({"$ref": "file:///etc/passwd"}, "/etc/passwd"),
    ({"$ref": "#/$defs/nowhere"}, "nowhere"),
    ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: ["uniqueItems"]'),
    ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
    ({"type": "string", "format": "regex"}, "Unknown format: regex"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable schema"),
    ({"type": "strin"}, "Invalid type: strin"),
    ({"type": "integer", "minimum": -(10**400)}, ""),
    ({"items": {"const": 1, "enum": [2]}, "minItems": 1, "type": "array"}, "Unsatisfiable"),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("schema", "says"), HOSTILE)
def test_what_cannot_be_kept_to_is_refused_in_time(guidance: Guidance, schema: dict[str, Any], says: str) -> None:
    with pytest.raises(GrammarError) as caught:
        grammar.check_schema(schema)
        guidance.read(grammar.json_value(schema))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "start:" not in str(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
        {"type": "string", "pattern": "^(a+)+$"},
        {"type": "integer", "multipleOf": 9973},
        {"allOf": [{"type": "number", "multipleOf": 0.25}, {"multipleOf": 0.1}], "minimum": 0, "maximum": 50},
        {"type": "string", "pattern": "^((a{0,100}){0,100}){0,100}$"},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}, "minItems": 9999}, "minItems": 9999},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}},
        {"enum": [f"value {i}" for i in range(10_000)]},
        nested(45),
    ],
)
def test_large_and_recursive_schemas_are_kept_to(
    guidance: Guidance, tokenizer: Tokenizer, schema: dict[str, Any]
) -> None:
    grammar.check_schema(schema)
    text, ended = say(
        guidance.read(grammar.json_value(schema)).start(), np.random.default_rng(1), tokenizer, temperature=0
    )
    if ended:
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.timeout(60)
def test_a_pattern_that_takes_too_much_memory_ends_its_own_output(guidance: Guidance, tokenizer: Tokenizer) -> None:
    output = guidance.read(grammar.json_value({"type": "string", "pattern": "^.*a.{1000}$"})).start()
    with pytest.raises(ConstraintError, match="too many"):
        for token in tokenizer.encode('"' + "ab" * 400, add_special_tokens=False):
            output.accept(token)
            output.mask()
    assert not output.forced()
    assert output.fits([5]) == 0


def test_of_tools_that_are_not_strict_it_is_said_what_is_left_out(guidance: Guidance) -> None:
    call = Call("f", "", "", {"type": "array", "uniqueItems": True}, strict=False)
    assert "uniqueItems" in "".join(guidance.read(grammar.arguments(call)).ignored)


# -- other tokenizers ------------------------------------------------------------------------------------------------


class Letters:
    """As many tokens as there are bytes, and "ab"; texts are changed before they are encoded."""

    eos_ids = frozenset([0])
    control_ids = frozenset([0])
    vocab_size = 257

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change

    def token_bytes(self, token: int) -> bytes:
        return b"ab" if token == 256 else bytes([token])

    def encode(self, text: str, **_: object) -> list[int]:
        return list(self._change(text).encode())


@pytest.mark.parametrize("change", [lambda text: text, lambda text: " " + text, str.upper])
def test_what_is_forced_is_spelled_by_tokenizers_that_change_texts(change: Callable[[str], str]) -> None:
    guidance = Guidance(Letters(change), 300)  # type: ignore[arg-type]
    output = guidance.read(grammar.choice(["abc\n: é"])).start()
    said = b""
    while not output.ended:
        token = output.forced()[0]
        said += Letters(change).token_bytes(token)
        output.accept(token)
    assert said.decode() == "abc\n: é"
