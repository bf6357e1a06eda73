"""Which part of a prediction is off?  What a worker did, from the records of `capacity_worker`, beside the model's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from berth_operator.planner.capacity import Load, as_loads, as_replicas
from berth_operator.planner.queueing import Array, states
from berth_operator.planner.speed import Speed

_FEW = 20
"""Steps of a kind, of which nothing is said."""

__all__ = ["Drift", "Trace", "parts_predicted"]


@dataclass(frozen=True, slots=True)
class Drift:
    """By what a machine takes longer than when it was profiled."""

    steps: float
    """Seconds that those which only decode take more than the profile says of as many streams."""
    prompts: float
    """What a turn's new tokens add to a step beside streams, over what the profile says of as many."""

    def slowed(self, speed: Speed) -> Speed:
        """The machine as it is now.

        Neighbours slow the reading of weights from memory, once a step, and less what is computed for each stream.
        """
        steps = tuple(seconds + self.steps for seconds in speed.step_seconds)
        pairs = zip(steps, speed.step_seconds, speed.gap_p99_seconds, strict=True)
        return replace(
            speed,
            step_seconds=steps,
            gap_p99_seconds=tuple(gap * now / before for now, before, gap in pairs),
            prefill_tokens_per_second=speed.prefill_tokens_per_second / self.prompts,
            attention_seconds=speed.attention_seconds * self.prompts,
        )


@dataclass(frozen=True, slots=True)
class Trace:
    """Steps and requests between two times."""

    seconds: float
    steps: Array
    """[step]: began, ended, rows that decode, rows of prompts, prompts, tokens attended to, turns inside, waiting."""
    requests: Array
    """[request]: arrived, admitted, first token, last token, prompt tokens, cached tokens."""

    @staticmethod
    def read(path: Path, begin: float, end: float) -> Trace:
        """What was recorded of [begin, end), on the monotonic clock."""
        steps, requests = (
            np.fromfile(f"{path}.{kind}").reshape(-1, width) for kind, width in (("steps", 8), ("requests", 6))
        )
        steps = steps[(steps[:, 0] >= begin) & (steps[:, 0] < end)]
        requests = requests[(requests[:, 0] >= begin) & (requests[:, 0] < end)]
        return Trace(end - begin, steps, requests)

    def drift(self, speed: Speed, new_tokens: int) -> Drift:
        """`new_tokens`: that a turn brings, as in the profile; chunks of fewer cost something else a token."""
        began, ended, decodes, rows, prompts, *_ = self.steps.T
        took, said = ended - began, np.interp(decodes, speed.concurrency, speed.step_seconds)
        pure = (rows == 0) & (decodes > 0)
        turns = (decodes > 0) & (prompts == 1) & (rows >= new_tokens)
        more = float((took - said)[pure].mean()) if pure.sum() >= _FEW else 0.0
        added = float((took - said)[turns].sum()) - more * int(turns.sum())
        read = added * speed.prefill_tokens_per_second / float(rows[turns].sum()) if turns.sum() >= _FEW else 1.0
        return Drift(more, read)

    def parts(self) -> dict[str, float]:
        """What `parts_predicted` predicts, as it was, and what it does not; milliseconds, percent, numbers of turns."""
        began, ended, decodes, rows, prompts, attended, _, waiting = self.steps.T
        took = ended - began
        inside = (self.requests[:, 3] - self.requests[:, 0]).sum() / self.seconds
        alone, mixed = decodes == 0, (decodes > 0) & (rows > 0)
        found = {
            "turns_inside": inside,
            "busy_percent": 100 * took.sum() / self.seconds,
            "reading_percent": 100 * took[rows > 0].sum() / self.seconds,
            "waiting_percent": 100 * took[waiting > 0].sum() / self.seconds,
            "uncached_tokens": float((self.requests[:, 4] - self.requests[:, 5]).mean()),
            "prompt_tokens": float(self.requests[:, 4].mean()),
            "steps_of_a_prompt": float(prompts.sum() / len(self.requests)),
            "chunk_beside_streams_ms": 1000 * float(took[mixed].mean()) if mixed.any() else 0.0,
            "prompt_alone_ms": 1000 * float(took[alone].mean()) if alone.any() else 0.0,
            "rows_alone": float(rows[alone].mean()) if alone.any() else 0.0,
            "rows_beside_streams": float(rows[mixed].mean()) if mixed.any() else 0.0,
            "engine_first_token_p50_ms": 1000 * float(np.percentile(self.requests[:, 2] - self.requests[:, 0], 50)),
            "engine_first_token_p99_ms": 1000 * float(np.percentile(self.requests[:, 2] - self.requests[:, 0], 99)),
            "engine_turn_p50_ms": 1000 * float(np.percentile(self.requests[:, 3] - self.requests[:, 0], 50)),
            "engine_turn_p99_ms": 1000 * float(np.percentile(self.requests[:, 3] - self.requests[:, 0], 99)),
        }
        for streams in (1, 2, 4, 8):
            pure = took[(decodes == streams) & (rows == 0)]
            if len(pure) >= _FEW:
                found[f"step_{streams}_ms"] = 1000 * float(pure.mean())
                found[f"step_{streams}_p99_over_mean"] = float(np.percentile(pure, 99) / pure.mean())
        # a step as a line in what it computes, each weighed by its own duration: relative errors count
        columns = [np.ones_like(took), decodes, rows, (rows > 0) * 1.0, attended]
        fitted, *_ = np.linalg.lstsq(np.stack(columns, 1) / took[:, None], np.ones_like(took), rcond=None)
        names = ("fit_step_ms", "fit_stream_ms", "fit_prompt_row_ms", "fit_chunk_ms", "fit_attended_us")
        scales = (1e3, 1e3, 1e3, 1e3, 1e6)
        return found | {name: scale * float(x) for name, scale, x in zip(names, scales, fitted, strict=True)}


def parts_predicted(speed: Speed, load: Load, rate: float, slots: int) -> dict[str, float]:
    """The model's own figures for a replica with so many slots at so many turns/s."""
    count = sum(b <= slots for b in speed.concurrency)
    cut = replace(
        speed,
        concurrency=speed.concurrency[:count],
        step_seconds=speed.step_seconds[:count],
        gap_p99_seconds=speed.gap_p99_seconds[:count],
        idle_seconds=speed.idle_seconds[:count],
    )
    found_by = states(as_replicas([(cut, load)]), as_loads([load]), np.array([rate]))
    chance, inside = found_by.chance[0], np.array([0, *cut.concurrency])
    found = {
        "turns_inside": float(chance @ inside),
        "busy_percent": 100 * (1 - float(chance[0])),
        "reading_percent": 100 * float(chance[1:] @ found_by.reading[0, 1:]),
        "uncached_tokens": max(load.prompt_tokens * (1 - load.cached_share), 1.0),
        "prompt_tokens": load.prompt_tokens,
        "prompt_alone_ms": 1000 * float(found_by.own[0, 0] - cut.step_seconds[0]),
        "chunk_adds_at_most_ms": 1000 * float(found_by.added[0, 1]),
        "fit_prompt_row_ms": 1000 / speed.prefill_tokens_per_second,
    }
    for streams in (1, 2, 4, 8):
        if streams in cut.concurrency:
            at = cut.concurrency.index(streams)
            found[f"step_{streams}_ms"] = 1000 * cut.step_seconds[at]
            found[f"step_{streams}_p99_over_mean"] = cut.gap_p99_seconds[at] / cut.step_seconds[at]
    return found
