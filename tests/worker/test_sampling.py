"""Is the token drawn from the distribution that was asked for, and the text cut where it was asked to be?"""

from __future__ import annotations

import codecs

import hypothesis.strategies as st
import numpy as np
import pytest
from berth_worker.engine.request import Request, SamplingParams
from berth_worker.engine.sampling import NonFiniteLogitsError, StopText, sample
from hypothesis import given
from numpy.typing import NDArray


def request(generated: int = 0, **params: float) -> Request:
    sampling = SamplingParams(**params)  # type: ignore[arg-type]
    r = Request(id="r", tokens=[1], params=sampling, max_tokens=100)
    r.tokens += [0] * generated
    return r


def reference(logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    """Probabilities by the textbook: sort everything, keep top-k, then the smallest set that reaches top_p."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if top_k:
        order = order[:top_k]
    weights = np.exp([(float(logits[i]) - float(logits[order[0]])) / temperature for i in order])
    weights /= weights.sum()
    keep = 1
    while keep < len(order) and weights[:keep].sum() < top_p - 1e-12:
        keep += 1
    kept = weights[:keep] / weights[:keep].sum()
    return dict(zip(order[:keep], kept, strict=True))


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.8), (4, 0.7)])
def test_tokens_come_as_often_as_their_probability_says(top_k: int, top_p: float) -> None:
    logits = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.15, 0.05], dtype=np.float32))
    draws = 4000
    counts = np.zeros(len(logits))
    for seed in range(draws):
        counts[sample(logits, request(temperature=0.8, top_k=top_k, top_p=top_p, seed=seed))] += 1
    wanted = reference(logits, 0.8, top_k, top_p)
    for token in range(len(logits)):
        p = wanted.get(token, 0.0)
        assert abs(counts[token] / draws - p) <= 4 * np.sqrt(p * (1 - p) / draws), f"token {token}"


@given(
    seed=st.integers(0, 2**64 - 1),
    size=st.sampled_from([1, 7, 600, 3000]),
    spread=st.sampled_from([0.0, 0.5, 4.0]),
    temperature=st.floats(0.05, 2.0),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 700]),
    top_p=st.floats(0.01, 1.0),
)
def test_a_token_outside_the_allowed_set_is_never_drawn(
    seed: int, size: int, spread: float, temperature: float, top_k: int, top_p: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(size) * spread).astype(np.float32)
    allowed = reference(logits, temperature, top_k, min(1.0, top_p + 1e-5))
    assert sample(logits, request(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)) in allowed


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
