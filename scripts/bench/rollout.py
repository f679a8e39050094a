"""Speed of decoding: cache x rule x batch x length, against a plain decoder in the same run.

python scripts/bench/rollout.py                            # two CPU cores, float32, 8 minutes
python scripts/bench/rollout.py --shape llada-8b --device cuda --dtype bfloat16 --batch 1 8 32 128 \
    --length 256 --steps 64 --compile
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import common
import torch
from common import (
    Meter,
    best,
    machine,
    machine_rates,
    peak_gib,
    prompts_of,
    random_policy,
    reset_peak,
    seconds,
    show,
)

from drift.common import rng
from drift.common.types import Trace
from drift.config.rollout import ROLLOUTS, CacheMode, RolloutConfig, StaticConfig
from drift.policy.base import Policy
from drift.rollout import caching, decoding
from tests.plain import naive_decode

KEY = rng.stream(0, "bench")


class Stopwatch:
    """Where the time of a decode goes; wraps the four parts while it is used."""

    def __init__(self, meter: Meter, device: str, compiles: bool):
        self.meter, self.device, self.compiles = meter, device, compiles
        self.spent = {"network": 0.0, "head": 0.0, "draw": 0.0}

    def timed(self, name: str, work: Callable[..., Any], count: Callable[..., None]) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            count(*args)
            took, result = seconds(lambda: work(*args, **kwargs), self.device)
            self.spent[name] += took
            return result

        return run

    def run(self, decode: Callable[[], Trace]) -> tuple[float, Trace]:
        policy, meter = self.meter.policy, self.meter
        backbone = policy.backbone

        def whole(ids: torch.Tensor, lengths: Any = None, query: Any = None) -> None:
            last = ids.numel() if query is None else query.numel()
            meter.layers(ids.numel(), last, ids.shape[1], len(ids))

        def fill(ids: torch.Tensor, lengths: Any, cache: Any, slots: Any, query: Any) -> None:
            last = 0 if query is None else query.numel()
            meter.layers(ids.numel(), last, ids.shape[1], len(ids))

        def step(ids: torch.Tensor, columns: Any, lengths: Any, cache: Any, *sizes: int) -> None:
            wanted, num_keys = sizes
            meter.layers(ids.numel(), len(ids) * wanted, num_keys, len(ids))

        def head(hidden: torch.Tensor) -> None:
            meter.head(len(hidden))

        wrapped: list[tuple[Any, str, str, Callable[..., None]]] = [
            (backbone, "forward", "network", whole),
            (backbone, "prefill", "network", fill),
            (policy, "denoising_logits", "head", head),
            (decoding, "draw", "draw", lambda *_: None),
        ]
        if not self.compiles:
            wrapped.append((backbone, "step", "network", step))
        compiled = caching.compiled
        caching.compiled = lambda *given: self.timed("network", compiled(*given), step)
        originals = [getattr(owner, name) for owner, name, _, _ in wrapped]
        for (owner, name, part, count), original in zip(wrapped, originals, strict=True):
            setattr(owner, name, self.timed(part, original, count))
        try:
            return seconds(decode, self.device)
        finally:
            for (owner, name, _, _), original in zip(wrapped, originals, strict=True):
                setattr(owner, name, original)
            caching.compiled = compiled


def measure(
    policy: Policy,
    prompts: list[list[int]],
    config: RolloutConfig,
    device: str,
    rates: tuple[float, float],
    tries: int,
) -> tuple[dict[str, Any], Trace]:
    """One row of the table: the best of `tries` runs for the time, a watched one for its parts."""

    policy.kept_cache = None  # of the row before
    reset_peak(device)

    def decode() -> Trace:
        return decoding.decode(policy, prompts, torch.arange(len(prompts)), config, KEY)

    if device != "cpu" or config.compile:
        decode()  # kernels are chosen and memory is taken
    took, trace = seconds(decode, device)
    took = min(took, best(decode, device, tries - 1)) if tries > 1 else took
    meter = Meter(policy, matmul=rates[0], copy=rates[1])
    watch = Stopwatch(meter, device, config.compile)
    watched, _ = watch.run(decode)
    draw = watch.spent["draw"] - watch.spent["head"]
    network = watch.spent["network"] / watched
    tokens, nfe = int(trace.committed_BC.sum()), int(trace.nfe_B.sum())
    return {
        "cache": config.cache.value + (" compiled" if config.compile else ""),
        "rule": ROLLOUTS.name(config),
        "batch": config.max_rows,
        "length": config.gen_length,
        "seconds": took,
        "tokens/s": tokens / took,
        "NFE": nfe / len(prompts),
        "tokens/NFE": tokens / nfe,
        "network": network,
        "head": watch.spent["head"] / watched,
        "sampling": draw / watched,
        "rest": 1 - network - (watch.spent["draw"] / watched),
        "TFLOP": meter.flops / 1e12,
        "bound s": meter.bound_s,
        "of bound": meter.bound_s / took,
        "peak GiB": peak_gib(device),
    }, trace


def grid(options: argparse.Namespace) -> list[RolloutConfig]:
    """Rules x lengths x batches x caches; a longer canvas takes steps in proportion."""
    caches = [
        {"cache": CacheMode.none},
        {"cache": CacheMode.prefix, "horizon": options.horizon},
        {"cache": CacheMode.dual},
    ]
    if options.compile:
        caches += [cache | {"compile": True} for cache in caches[1:]]
    return [
        ROLLOUTS.schemas[rule](
            gen_length=length,
            block_length=options.block,
            steps=options.steps * length // options.length[0],
            max_rows=batch,
            **cache,
        )
        for rule, length, batch, cache in product(
            options.rule, options.length, options.batch, caches
        )
    ]


def measure_all(
    policy: Policy,
    options: argparse.Namespace,
    rates: tuple[float, float],
    rows: list[dict[str, Any]],
    about: dict[str, Any],
) -> None:
    """Add a row for each of the grid; the static rule's stand beside the plain decoder."""
    device, vocab = options.device, policy.backbone.config.vocab_size
    plain: dict[str, tuple[float, float]] = {}
    for config in grid(options):
        prompts = prompts_of(config.max_rows, options.prompt, vocab)
        row, trace = measure(policy, prompts, config, device, rates, options.tries)
        rows.append(row)
        if not isinstance(config, StaticConfig):
            continue
        size = f"batch {config.max_rows}, length {config.gen_length}"
        if config.cache == CacheMode.none and config.max_rows <= 32:
            # float64 logits of all rows: no more than 32
            runs = [
                [
                    seconds(lambda g=g: naive_decode(policy, prompts, config, KEY, g), device)  # noqa: B023
                    for g in (False, True)
                ]
                for _ in range(options.tries)
            ]
            inversion, gumbel = (min(run[i][0] for run in runs) for i in (0, 1))
            plain[size] = (inversion, gumbel)
            about["plain decoder"][size] = f"{inversion:.1f} s, Gumbel noise {gumbel:.1f} s"
            row["same tokens"] = float((runs[0][0][1] == trace.canvas_BC).float().mean())
        if size in plain:
            inversion, gumbel = plain[size]
            row["x plain"], row["x Gumbel"] = inversion / row["seconds"], gumbel / row["seconds"]


def retirement(policy: Policy, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Answers that end between 10 % and 100 % of the canvas, with and without leaving early.

    A stop token is put where a row is to end, as soon as that position is committed.
    """
    policy.kept_cache = None
    rows, length = 4 * max(options.batch), 2 * options.length[0]
    prompts = prompts_of(rows, options.prompt, policy.backbone.config.vocab_size)
    share_B = 0.1 + 0.9 * rng.uniform(rng.stream(0, "ends"), torch.arange(rows))
    end_B = (share_B * length).long().clamp(max=length - 1).to(policy.device)
    config = StaticConfig(
        gen_length=length,
        block_length=options.block,
        steps=2 * options.steps,
        cache=CacheMode.dual,
        max_rows=max(options.batch),
    )
    advance, stop = decoding.advance, policy.special.stop

    def ending(policy: Policy, network: Any, state: Any, active_A: torch.Tensor, *rest: Any) -> Any:
        end_A = state.prompt_length_B[active_A] + end_B[active_A]
        there = state.step_BS[active_A, end_A] >= 0
        state.ids_BS[active_A[there], end_A[there]] = stop[0]
        return advance(policy, network, state, active_A, *rest)

    found: list[dict[str, Any]] = []
    decoding.advance = ending
    for leaves in (False, True):
        policy.special = replace(policy.special, stop=stop if leaves else (-1,))
        took, trace = seconds(
            lambda: decoding.decode(policy, prompts, torch.arange(rows), config, KEY),
            options.device,
        )
        found.append(
            {"rows leave": leaves, "seconds": took, "NFE": float(trace.nfe_B.float().mean())}
        )
    decoding.advance, policy.special = advance, replace(policy.special, stop=stop)
    for row in found:
        row["times faster"] = found[0]["seconds"] / row["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=common.SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=common.DTYPES, default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--length", type=int, nargs="+", default=[128])
    parser.add_argument("--rule", choices=list(ROLLOUTS.schemas), nargs="+", default=["static"])
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--steps", type=int, default=32, help="of the first length")
    parser.add_argument("--horizon", type=int, default=128)
    parser.add_argument("--compile", action="store_true", help="the caches again, compiled")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tries", type=int, default=3, help="each time is the best of so many")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    policy = random_policy(options.shape, options.dtype, options.device)
    rates = machine_rates(options.dtype, options.device)
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {
        "machine": machine(options.device),
        "shape": f"{options.shape}, {options.dtype}, prompt {options.prompt}, "
        f"block {options.block}, {options.steps} steps",
        "matmul": f"{rates[0] / 1e9:.0f} GFLOP/s",
        "copy": f"{rates[1] / 1e9:.1f} GB/s",
        "plain decoder": {},
    }
    try:
        measure_all(policy, options, rates, rows, about)
        about["retirement"] = retirement(policy, options)
    finally:  # what is measured is shown, also if memory ends
        show("rollout", rows, options.json, about)


if __name__ == "__main__":
    main()
