"""How do many pools judge many classes at once?  What `candidates` does for one pair, a class and a model at a time."""

from collections.abc import Iterable, Sequence

from berth_operator.api import HardwareClass, Quantization, ServingProfile
from berth_operator.planner.architectures import ARCHITECTURES
from berth_operator.planner.candidates import (
    Fit,
    Judgement,
    NoFit,
    PoolContext,
    judge_profile,
    profile_fit,
    quantizations,
    too_large,
)
from berth_operator.planner.capacities import profiled_capacities, roofline_capacities
from berth_operator.planner.capacity import Load, TooSlow
from berth_operator.planner.speed import Speed, best_profile, estimable, roofline_kv_tokens
from berth_operator.planner.types import Verdict

Judgements = dict[tuple[str, Quantization], Judgement]
_Wanted = list[tuple[int, Load]]


def judge_all(contexts: Sequence[PoolContext], classes: Iterable[HardwareClass]) -> list[Judgements]:
    """[context] by class name and quantization, whether a pool's replica fits there and what it carries."""
    found: list[Judgements] = [{} for _ in contexts]
    groups: dict[tuple[str, Quantization], _Wanted] = {}
    profiles: dict[str, tuple[ServingProfile, ...]] = {}
    for i, context in enumerate(contexts):
        load = Load.of(context.effective)
        profiles[context.effective.model] = context.profiles
        for quantization in quantizations(context):
            groups.setdefault((context.effective.model, quantization), []).append((i, load))
    from_profiles: list[tuple[int, tuple[str, Quantization], ServingProfile, Speed, Load]] = []
    for hardware in classes:
        name, runtime = hardware.metadata.name, hardware.spec.runtime.name
        for (model, quantization), wanted in groups.items():
            profile = best_profile(profiles[model], model, quantization, name, runtime)
            if profile is None:
                _estimate(hardware, model, quantization, wanted, found)
                continue
            for i, load in wanted:
                speed = judge_profile(profile, load)
                if isinstance(speed, NoFit):
                    found[i][name, quantization] = speed
                else:
                    from_profiles.append((i, (name, quantization), profile, speed, load))
    carried = profiled_capacities([(speed, load) for *_, speed, load in from_profiles])
    for (i, key, profile, speed, _), (capacity, unloaded) in zip(from_profiles, carried, strict=True):
        found[i][key] = profile_fit(profile, key[1], speed, capacity, unloaded)
    return found


def _estimate(
    hardware: HardwareClass, model: str, quantization: Quantization, wanted: _Wanted, found: Sequence[Judgements]
) -> None:
    spec, key = hardware.spec, (hardware.metadata.name, quantization)
    architecture = ARCHITECTURES.get(model)
    if architecture is None or estimable(spec):
        return  # a reason that needs no arithmetic: `candidates` words it
    kv = roofline_kv_tokens(spec, architecture, quantization)
    fitting: _Wanted = []
    for i, load in wanted:
        if kv >= load.context_tokens:
            fitting.append((i, load))
        elif arithmetic := too_large(spec, architecture, quantization, load.context_tokens):
            found[i][key] = NoFit(Verdict.DOES_NOT_FIT, arithmetic, True)
    if not fitting:
        return
    carried = roofline_capacities(spec, architecture, quantization, [load for _, load in fitting])
    for (i, _), (capacity, unloaded) in zip(fitting, carried, strict=True):
        found[i][key] = (
            NoFit.too_slow(capacity, estimated=True)
            if isinstance(capacity, TooSlow)
            else Fit(quantization, capacity, 1, None, unloaded)
        )
