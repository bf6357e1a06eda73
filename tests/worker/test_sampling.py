"""Is the token drawn from the distribution that was asked for, and the text cut where it was asked to be?"""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from berth_worker.engine.request import InvalidRequestError, Request, SamplingParams
from berth_worker.engine.sampling import NonFiniteLogitsError, Sampler, sample
from berth_worker.engine.stop import StopText
from hypothesis import given, settings


def request(generated: int = 0, prompt: Sequence[int] = (1,), output: Sequence[int] = (), **params: Any) -> Request:
    r = Request(id="r", tokens=list(prompt), params=SamplingParams(**params), max_tokens=100)
    r.tokens += list(output) or [0] * generated
    return r


def reference(logits: Sequence[float], r: Request, slack: float = 0.0) -> dict[int, float]:
    """Probabilities by the textbook, token by token. slack: how much further each cut may reach."""
    p = r.params
    output = list(r.output_tokens)
    scores = []
    for token, raw in enumerate(logits):
        score = float(raw) + p.logit_bias.get(token, 0.0)
        if token in r.tokens:
            score = score / p.repetition_penalty if score > 0 else score * p.repetition_penalty
        score -= p.frequency_penalty * output.count(token)
        score -= p.presence_penalty * (token in output)
        scores.append(score / p.temperature)
    weights = [math.exp(score - max(scores)) for score in scores]
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    order = [i for i in order if weights[i] >= p.min_p * (1 - slack)]
    if p.top_k:
        least = weights[order[min(p.top_k, len(order)) - 1]]
        order = [i for n, i in enumerate(order) if n < p.top_k or weights[i] >= least * (1 - slack) > least * 0.999]
    total = sum(weights[i] for i in order)
    kept: list[int] = []
    for i in order:
        if sum(weights[j] for j in kept) >= (p.top_p + slack) * total - 1e-12:
            break
        kept.append(i)
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.8), (4, 0.7)])
def test_tokens_come_as_often_as_their_probability_says(top_k: int, top_p: float) -> None:
    logits = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.15, 0.05], dtype=np.float32))
    draws = 4000
    counts = np.zeros(len(logits))
    for seed in range(draws):
        counts[sample(logits, request(temperature=0.8, top_k=top_k, top_p=top_p, seed=seed))] += 1
    wanted = reference(list(logits), request(temperature=0.8, top_k=top_k, top_p=top_p))
    for token in range(len(logits)):
        p = wanted.get(token, 0.0)
        assert abs(counts[token] / draws - p) <= 4 * np.sqrt(p * (1 - p) / draws), f"token {token}"


settings_of_any_kind = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.05, 2.0),
        "top_k": st.sampled_from([0, 2, 5, 40]),
        "top_p": st.sampled_from([1.0, 0.95, 0.5, 0.01]),
        "min_p": st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.7]),
        "presence_penalty": st.sampled_from([0.0, 0.8, -1.5]),
        "frequency_penalty": st.sampled_from([0.0, 0.4, -0.4]),
        # in eighths: a bias too small for float32 leaves a tie, which the reference in float64 breaks
        "logit_bias": st.dictionaries(st.integers(0, 6), st.integers(-800, 800).map(lambda n: n / 8), max_size=3),
        "seed": st.integers(0, 2**64 - 1),
    }
)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([7, 300, 1000]),
    spread=st.sampled_from([0.0, 0.5, 4.0]),
    output=st.lists(st.integers(0, 6), max_size=12),
    params=settings_of_any_kind,
)
def test_a_token_outside_the_allowed_set_is_never_drawn(
    seed: int, size: int, spread: float, output: list[int], params: dict[str, Any]
) -> None:
    logits = (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)
    before = logits.copy()
    r = request(prompt=[2, 3, 3], output=output, **params)
    token = sample(logits, r)
    assert token in reference(list(logits), r, slack=1e-4)
    assert np.array_equal(logits, before), "the model's logits are left as they are"


@settings(deadline=None, max_examples=15)
@given(params=settings_of_any_kind, output=st.lists(st.integers(0, 6), max_size=6))
def test_whatever_is_asked_tokens_come_as_often_as_the_reference_says(
    params: dict[str, Any], output: list[int]
) -> None:
    logits = np.array([0.3, 2.0, -1.0, 1.4, 0.9, 0.2, -0.4], dtype=np.float32)
    draws = 1200
    counts = np.zeros(len(logits))
    for seed in range(draws):
        counts[sample(logits, request(prompt=[2, 3], output=output, **params | {"seed": seed}))] += 1
    exact = reference(list(logits), request(prompt=[2, 3], output=output, **params))
    ties = reference(list(logits), request(prompt=[2, 3], output=output, **params), slack=1e-4)
    if exact.keys() == ties.keys():  # else the cut is within rounding of a token
        for token in range(len(logits)):
            p = exact.get(token, 0.0)
            assert abs(counts[token] / draws - p) <= 5 * math.sqrt(p * (1 - p) / draws) + 1e-6, f"token {token}"


def test_a_sampler_that_goes_on_counts_as_one_that_starts_anew() -> None:
    rng = np.random.default_rng(3)
    params = {"temperature": 0.9, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2}
    r = request(prompt=list(range(0, 300, 7)), seed=5, **params)
    sampler = Sampler(r)
    for _ in range(150):
        logits = rng.standard_normal(400).astype(np.float32)
        token = sampler.next(logits, int(logits.argmax()))
        assert token == sample(logits, r)
        r.tokens.append(token)


def test_the_end_does_not_come_before_min_tokens() -> None:
    logits = np.array([1.0, 9.0, 2.0], dtype=np.float32)
    r = request(generated=2, temperature=0, min_tokens=3)
    assert Sampler(r, ends=[1]).next(logits, 1) == 2
    r.tokens.append(0)
    assert Sampler(r, ends=[1]).next(logits, 1) == 1


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([3, 50, 2000]), top=st.integers(0, 20))
def test_logprobs_are_those_of_the_model_whatever_is_asked_of_the_sampler(seed: int, size: int, top: int) -> None:
    logits = (np.random.default_rng(seed).standard_normal(size) * 3).astype(np.float32)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    r = request(temperature=0.3, top_k=1, logit_bias={0: 50.0})
    got = Sampler(r).logprobs(logits, 2, top)
    assert (got.token, got.logprob) == (2, pytest.approx(exact[2], abs=1e-4))
    order = sorted(range(size), key=lambda i: (-logits[i], i))[:top]
    assert [token for token, _ in got.top] == order
    assert [value for _, value in got.top] == pytest.approx([exact[i] for i in order], abs=1e-4)


def test_a_large_vocabulary_is_drawn_from_as_a_small_one() -> None:
    """Over many strides of the running sum: shares of its quarters."""
    size, draws = 49152, 3000
    weights = np.linspace(0.2, 1.8, size)
    logits = np.log(weights).astype(np.float32)
    quarters = np.zeros(4)
    for seed in range(draws):
        quarters[sample(logits, request(temperature=1.0, seed=seed)) * 4 // size] += 1
    for share, p in zip(quarters / draws, weights.reshape(4, -1).sum(1) / size, strict=True):
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / draws)


def test_temperature_zero_takes_the_likeliest_and_of_equals_the_first() -> None:
    logits = np.array([0.0, 3.0, 3.0, -1.0], dtype=np.float32)
    assert sample(logits, request(temperature=0)) == 1
    assert sample(logits, request(temperature=2, top_k=1)) == 1
    assert sample(logits, request(temperature=1e-45)) == 1
    assert sample(np.array([0.0, 90.0, 89.0], dtype=np.float32), request(temperature=1e-5)) == 1


def test_the_draw_is_a_function_of_seed_and_place_alone() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    by_place = [sample(logits, request(generated=n, temperature=1, seed=5)) for n in range(50)]
    assert by_place == [sample(logits, request(generated=n, temperature=1, seed=5)) for n in range(50)]
    assert len(set(by_place)) > 40
    assert by_place != [sample(logits, request(generated=n, temperature=1, seed=6)) for n in range(50)]
    assert sample(logits, request(temperature=1)) != sample(logits, request(temperature=1)) or (
        sample(logits, request(temperature=1)) != sample(logits, request(temperature=1))
    ), "without a seed, randomness is fresh"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_error_and_not_a_token(bad: float) -> None:
    logits = np.full(8, bad, dtype=np.float32)
    with pytest.raises(NonFiniteLogitsError, match="request r: logit of token 0 is"):
        sample(logits, request(temperature=0))


class Utf8Stream:
    """Tokens are bytes."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


@given(text=st.text("abé", max_size=30), stops=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3))
def test_text_ends_where_a_stop_string_begins_and_none_is_lost_without_one(text: str, stops: list[str]) -> None:
    stopper = StopText(Utf8Stream(), stops)
    out, read = "", b""
    for byte in text.encode():
        out += stopper.push(byte)
        read += bytes([byte])
        if stopper.stopped:
            break
    whole = out + stopper.flush()
    assert stopper.stopped == any(stop in text for stop in stops)
    assert not any(stop in whole for stop in stops)
    if stopper.stopped:
        seen = read.decode()
        assert any(seen == whole + stop or seen[len(whole) :].startswith(stop) for stop in stops)
        assert any(seen.endswith(stop) for stop in stops), "it stops with the byte that completes a stop string"
    else:
        assert whole == text


def test_a_cut_character_at_the_end_is_shown_as_such() -> None:
    stopper = StopText(Utf8Stream(), ["never"])
    assert "".join(map(stopper.push, "né".encode()[:2])) == ""
    assert stopper.flush() == "n\N{REPLACEMENT CHARACTER}"


class WholePiece(Utf8Stream):
    """A token that is a long piece of text."""

    def push(self, token: int) -> str:
        return "one, two; three."


def test_of_two_stop_strings_in_one_token_the_first_to_begin_ends_the_text() -> None:
    for stops in ([";", ","], [",", ";"]):
        stopper = StopText(WholePiece(), stops)
        assert (stopper.push(0), stopper.stopped, stopper.push(0), stopper.flush()) == ("one", True, "", "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("seed", -1),
        ("seed", 2**64),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 2.5),
        ("presence_penalty", -2.1),
        ("frequency_penalty", float("nan")),
        ("logprobs", 21),
        ("min_tokens", -1),
        ("logit_bias", dict.fromkeys(range(1025), 1.0)),
        ("stop", ("",) * 17),
    ],
)
def test_a_parameter_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{field}: ") as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field
