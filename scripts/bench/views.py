"""Memory of the learner's own bookkeeping: views, log-probs and weights, without a network.

    python scripts/bench/views.py      # 512 rows of 1k, 4k and 8k tokens, a state for each token

Each size is a process of its own; what it holds is the growth of its resident memory. Beside it are
the bytes of two boolean planes [views, rows, canvas], which would say the same.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from drift.common.types import PromptBatch, Rollout, TokenLogps, Trace
from drift.config.masking import ReplayConfig
from drift.config.objective import Normalization
from drift.learner.layout import micro_batches
from drift.learner.masking import build_views
from drift.learner.objective import local_counts, weigh
from drift.policy.base import SpecialIds

PROMPT = 64
MIB = 2**20


def rollout_of(rows: int, tokens: int, block: int, prompt: int, canvas: Tensor) -> Rollout:
    """One token a step, blocks from left to right, a random order within each."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(rows, tokens // block, block, generator=generator)
    order = noise.argsort(2).argsort(2) + block * torch.arange(tokens // block)[:, None]
    whole = torch.full((rows,), tokens)
    trace = Trace(
        prompt_length_B=torch.full((rows,), prompt),
        canvas_BC=canvas,
        unmask_step_BC=order.flatten(1),
        logp_BC=torch.zeros(rows, tokens),
        length_B=whole,
        finished_B=whole > 0,
        nfe_B=whole,
        commits_B=torch.zeros_like(whole),
    )
    return Rollout.ungraded(
        PromptBatch(examples=[], ids=[[5] * prompt], first_prompt=0), trace, group_size=rows
    )


def resident_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(rows: int, tokens: int, block: int) -> None:
    """Build everything of an update but the forwards, and print a row of the table."""
    rollout = rollout_of(rows, tokens, block, PROMPT, torch.full((rows, tokens), 5))
    before, started = resident_mib(), time.perf_counter()
    views = build_views(rollout.trace, rollout.rows_B, ReplayConfig(), 0)
    special = SpecialIds(mask=1, pad=0, stop=(2,))
    batches = micro_batches(rollout, views, special, tokens_per_forward=PROMPT + tokens)
    counts = local_counts(views, views.length_B)
    weights = weigh(views, views.length_B, Normalization.sample, counts, tokens)
    zeros = torch.zeros(len(views.state_N))
    logps = [TokenLogps(logp_N=zeros.clone(), entropy_N=zeros.clone()) for _ in range(3)]
    token_N = weights.token_N
    built_s, started = time.perf_counter() - started, time.perf_counter()
    for index in range(10):
        batches[index]
    forward_ms = 100 * (time.perf_counter() - started)
    number, held = len(views.state_N), resident_mib() - before
    assert len(batches) == rows * tokens and len(logps) == 3 and len(token_N) == number
    planes = 2 * rows * tokens * tokens
    print(
        f"| {rows} x {tokens} | {number:,} | {held:,.0f} | {held * MIB / number:.0f} "
        f"| {planes / 2**30:,.1f} | {built_s:.1f} | {forward_ms:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--tokens", type=int, nargs="*", default=[1024, 4096, 8192])
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--one", action="store_true", help="in this process")
    options = parser.parse_args()
    if options.one:
        measure(options.rows, options.tokens[0], options.block)
        return
    names = ("rows x tokens", "scored", "MiB held at most", "bytes a token", "planes GiB")
    print(f"| {' | '.join(names)} | built s | a row's input ms |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for tokens in options.tokens:
        command = [sys.executable, __file__, "--one", f"--rows={options.rows}"]
        command += [f"--tokens={tokens}", f"--block={options.block}"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
