"""How do many pools judge many classes at once?  What `candidates` does for one pair, a class and a model at a time."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from berth_operator.api import HardwareClass, HardwareKind, Quantization, ServingProfile
from berth_operator.planner.architectures import ARCHITECTURES
from berth_operator.planner.candidates import (
    Fit,
    Judgement,
    NoFit,
    PoolContext,
    judge_profile,
    profile_fit,
    quantizations,
    span_fit,
)
from berth_operator.planner.capacities import AT_ONCE, Pairs, profiled_pairs, roofline_pairs
from berth_operator.planner.capacity import Judged, Load, TooSlow
from berth_operator.planner.spans import most_nodes, too_large, widths
from berth_operator.planner.speed import Speed, best_profile, estimable, roofline_kv_tokens

Judgements = dict[tuple[str, Quantization], Judgement]
_Key = tuple[str, Quantization]
_Asked = list[tuple[int, tuple[_Key, ...], "ServingProfile | int"]]
"""Of each pair: context, what it is judged for, and by which profile, or over how many nodes."""
_SAME_SPEED: Final = frozenset({"vendor", "chip", "power_watts", "namespace_selector", "capacity", "source"})
"""Of a class's spec, what no estimate of one node's speed and memory depends on."""
_THREADS: Final = 2
"""That judge at once: the compiled model does not hold Python's lock, and what is around it, a third, does."""


def judge_all(contexts: Sequence[PoolContext], classes: Iterable[HardwareClass]) -> list[Judgements]:
    """[context] by class name and quantization, whether a pool's replica fits there and what it carries."""
    by_name = {c.metadata.name: c for c in classes}
    found: list[Judgements] = [{} for _ in contexts]
    over: dict[tuple[int, _Key], dict[int, Judged]] = {}
    for asked, judged in _judged(_pairs(contexts, by_name.values(), found)):
        for (i, keys, by), (capacity, unloaded) in zip(asked, judged, strict=True):
            if isinstance(by, int) and by > 1:
                for key in keys:
                    over.setdefault((i, key), {})[by] = capacity, unloaded
                continue
            fit: Judgement
            if isinstance(by, ServingProfile):
                fit = profile_fit(by, keys[0][1], capacity, unloaded)
            elif isinstance(capacity, TooSlow):
                fit = NoFit.too_slow(capacity, estimated=True)
            else:
                fit = Fit(keys[0][1], capacity, 1, None, unloaded)
            for key in keys:
                found[i][key] = fit
    for (i, key), by_nodes in over.items():
        hardware, context = by_name[key[0]], contexts[i]
        model, tokens = ARCHITECTURES[context.effective.model], Load.of(context.effective).context_tokens
        arithmetic = too_large(hardware.spec, model, key[1], tokens) or ""
        found[i][key] = span_fit(hardware, model, key[1], context, arithmetic, by_nodes)
    return found


def _judged(batches: Iterable[tuple[_Asked, Pairs]]) -> Iterator[tuple[_Asked, list[Judged]]]:
    """What each batch carries, in their order; the next ones are judged meanwhile."""
    ahead: deque[tuple[_Asked, Future[list[Judged]]]] = deque()
    with ThreadPoolExecutor(_THREADS) as threads:
        for asked, pairs in batches:
            ahead.append((asked, threads.submit(pairs.judged)))
            if len(ahead) > _THREADS:
                first, judged = ahead.popleft()
                yield first, judged.result()
        for asked, judged in ahead:
            yield asked, judged.result()


def _pairs(
    contexts: Sequence[PoolContext], classes: Iterable[HardwareClass], found: Sequence[Judgements]
) -> Iterator[tuple[_Asked, Pairs]]:
    """What takes the queueing model; what does not is put into `found`."""
    groups: dict[tuple[str, Quantization], list[tuple[int, Load]]] = {}
    profiles: dict[str, tuple[ServingProfile, ...]] = {}
    for i, context in enumerate(contexts):
        load = Load.of(context.effective)
        profiles[context.effective.model] = context.profiles
        for quantization in quantizations(context):
            groups.setdefault((context.effective.model, quantization), []).append((i, load))
    profiled: _Asked = []
    speeds: list[tuple[Speed, Load]] = []
    for same in _as_fast(classes):
        for (model, quantization), wanted in groups.items():
            estimated: list[HardwareClass] = []
            for hardware in same:
                name, runtime = hardware.metadata.name, hardware.spec.runtime.name
                profile = best_profile(profiles[model], model, quantization, name, runtime)
                if profile is None:
                    estimated.append(hardware)
                    continue
                for i, load in wanted:
                    speed = judge_profile(profile, load, hardware, contexts[i])
                    if isinstance(speed, NoFit):
                        found[i][name, quantization] = speed
                        continue
                    profiled.append((i, ((name, quantization),), profile))
                    speeds.append((speed, load))
                    if len(speeds) == AT_ONCE:
                        yield profiled, profiled_pairs(speeds)
                        profiled, speeds = [], []
            if estimated:
                yield from _estimates(estimated, model, quantization, wanted, contexts, found)
    if speeds:
        yield profiled, profiled_pairs(speeds)


def _as_fast(classes: Iterable[HardwareClass]) -> Iterable[list[HardwareClass]]:
    """Classes that an estimate cannot tell apart go together: the same devices in nodes of several sizes, above all."""
    found: dict[str, list[HardwareClass]] = {}
    for hardware in classes:
        spec = hardware.spec
        besides = _SAME_SPEED if spec.kind is HardwareKind.CPU else _SAME_SPEED | {"cpus"}
        alone = hardware.metadata.name if most_nodes(spec) > 1 else ""  # how wide a replica goes depends on limits
        found.setdefault(alone + spec.model_dump_json(exclude=set(besides)), []).append(hardware)
    return found.values()


def _estimates(
    same: Sequence[HardwareClass],
    model: str,
    quantization: Quantization,
    wanted: Sequence[tuple[int, Load]],
    contexts: Sequence[PoolContext],
    found: Sequence[Judgements],
) -> Iterator[tuple[_Asked, Pairs]]:
    """Of classes that are as fast as each other."""
    spec, keys = same[0].spec, tuple((hardware.metadata.name, quantization) for hardware in same)
    architecture = ARCHITECTURES.get(model)
    if architecture is None or estimable(spec):
        return  # a reason that needs no arithmetic: `candidates` words it
    kv = roofline_kv_tokens(spec, architecture, quantization)
    fitting: dict[int, list[tuple[int, Load]]] = {}
    for i, load in wanted:
        if kv >= load.context_tokens:
            fitting.setdefault(1, []).append((i, load))
        elif over := widths(spec, architecture, quantization, load.context_tokens):
            for nodes in over:
                fitting.setdefault(nodes, []).append((i, load))
        elif arithmetic := too_large(spec, architecture, quantization, load.context_tokens):
            for hardware, key in zip(same, keys, strict=True):
                found[i][key] = span_fit(hardware, architecture, quantization, contexts[i], arithmetic, {})
    for nodes, able in sorted(fitting.items()):
        for start in range(0, len(able), AT_ONCE):
            some = able[start : start + AT_ONCE]
            asked: _Asked = [(i, keys, nodes) for i, _ in some]
            yield asked, roofline_pairs(spec, architecture, quantization, [load for _, load in some], nodes)
