"""How many turns a second does each pool get, step by step?  Diurnal, weekly, noisy, with bursts; reproducible."""

import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from berth_operator.simulate.scenario import DemandShape, Scenario

Series = npt.NDArray[np.float64]


def demand(
    scenario: Scenario, peaks: Mapping[str, float], copy_of: Mapping[str, str] | None = None
) -> dict[str, Series]:
    """Turns/s by pool key, [step]; `peaks` are the declared demands.  A pool's series does not depend on the others.

    `copy_of`: keys of copies -> the pool whose form of demand they have.
    """
    names = {key: (copy_of or {}).get(key, key).rpartition("/")[2] for key in peaks}
    return {
        key: peak * shape(scenario.demand_of.get(names[key], scenario.demand), scenario, key)
        for key, peak in peaks.items()
    }


def shape(form: DemandShape, scenario: Scenario, key: str) -> Series:
    """Share of the peak, [step]; above 1 in noise and bursts."""
    rng = np.random.default_rng([scenario.seed, zlib.crc32(key.encode())])
    hours = np.arange(scenario.steps) * scenario.step_hours
    trough = form.trough_percent / 100
    day = trough + (1 - trough) * (1 + np.cos((hours - form.peak_hour) * np.pi / 12)) / 2
    week = np.where(hours // 24 % 7 >= 5, form.weekend_percent / 100, 1.0)
    noise = np.exp(rng.normal(0.0, max(form.noise_percent, 1e-9) / 100, len(hours)))
    return np.asarray(day * week * noise * _bursts(form, scenario, rng), dtype=np.float64)


def _bursts(form: DemandShape, scenario: Scenario, rng: np.random.Generator) -> Series:
    """1, or the burst's multiple while one lasts, [step]."""
    out = np.ones(scenario.steps)
    length = max(1, round(form.bursts.duration / scenario.step))
    for _ in range(rng.poisson(float(form.bursts.per_day) * scenario.days)):
        start = int(rng.integers(0, scenario.steps))
        out[start : start + length] = float(form.bursts.times)
    return out
