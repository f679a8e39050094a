"""Block diffusion: decoding by exact cache, and a trajectory scored in one forward.

    python scripts/bench/blocks.py              # one CPU thread, float32, about half an hour

Decoding: `block` against no cache on the same network, and against `dual` on a network of the same
sizes with full attention. Learning, forward and backward of one row's whole trajectory: one forward
[clean row; states], against [noisy row; clean row] for each local step, as is usual, and against a
whole row for each state, as full attention needs; of the last a share of the states is measured.
Each ratio of times stands beside the ratio of tokens that the layers computed.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import machine, prompts_of, seconds, show
from learner import rise
from torch import Tensor

from drift.common import rng
from drift.common.types import MaskedViews, PromptBatch, Rollout, Trace
from drift.config.masking import ReplayConfig
from drift.config.rollout import CacheMode, StaticConfig
from drift.learner.layout import micro_batches
from drift.learner.likelihood import score
from drift.learner.masking import build_views
from drift.learner.masking.states import local_steps
from drift.policy.backbone import Backbone, BackboneConfig
from drift.policy.base import Policy, SpecialIds
from drift.policy.loading import FAMILIES
from drift.rollout.decoding import decode

KEY = rng.stream(0, "bench")
SHARE = 32  # of the states: one in so many is measured where each takes a forward


def network(options: argparse.Namespace, block: int) -> Policy:
    sizes = BackboneConfig(
        vocab_size=options.vocabulary, hidden_size=512, num_layers=6, num_heads=8, num_kv_heads=8,
        mlp_size=1536, rope_theta=1e6, norm_eps=1e-6, max_positions=4096, qkv_bias=False,
        tie_head=False, head_size=64, qk_norm=True, block_length=block,
    )  # fmt: skip
    with torch.device("meta"):
        backbone = Backbone(sizes)
    backbone = backbone.to_empty(device="cpu")
    backbone.init_weights(torch.Generator().manual_seed(0))
    return Policy(backbone, FAMILIES["sdar"], SpecialIds(mask=1, pad=0, stop=(-1,)))


class Columns:
    """Counts the columns that the first layer computes."""

    def __init__(self, policy: Policy):
        self.count = 0
        norm = policy.backbone.blocks[0].get_submodule("attn_norm")
        self.hook = norm.register_forward_hook(self.add)

    def add(self, _: Any, inputs: tuple[Tensor, ...], __: Any) -> None:
        self.count += inputs[0].shape[0] * inputs[0].shape[1]

    def of(self, work: Callable[[], Any]) -> tuple[float, int, Any]:
        """Seconds, columns and result."""
        self.count = 0
        took, found = seconds(work, "cpu")
        return took, self.count, found


def rolled(trace: Trace, prompts: list[list[int]]) -> Rollout:
    return Rollout.ungraded(PromptBatch(examples=[], ids=prompts, first_prompt=0), trace)


def by_local_step(views: MaskedViews, trace: Trace) -> MaskedViews:
    """The same tokens in a view for each local step: of every block its k-th state at once."""
    local_BC = local_steps(trace)
    count = int(local_BC.max()) + 1
    row_J = torch.arange(len(local_BC)).repeat_interleave(count)
    order_J = torch.arange(count).repeat(len(local_BC))
    state_N = views.row_N * count + local_BC[views.row_N, views.column_N]
    order_N = state_N.argsort(stable=True)

    def hide(state_M: Tensor) -> Tensor:
        local_MC = local_BC[row_J[state_M]]
        return (local_MC >= order_J[state_M, None]) | (local_MC < 0)

    return replace(
        views,
        row_J=row_J,
        order_J=order_J,
        hide=hide,
        state_N=state_N[order_N],
        column_N=views.column_N[order_N],
    )


def learn(policy: Policy, rollout: Rollout, views: MaskedViews, tokens: int) -> None:
    policy.zero_grad(set_to_none=True)
    for batch in micro_batches(rollout, views, policy.special, tokens):
        logp_N, *_ = score(policy, batch, 1.0)
        (-logp_N.sum()).backward()


def decoding(options: argparse.Namespace, block: int, per_step: float) -> list[dict[str, Any]]:
    steps = round(options.length / per_step / (options.length // block)) * (options.length // block)
    prompts = prompts_of(options.rows, options.prompt, options.vocabulary)
    ways = {"block": (block, CacheMode.block), "none": (block, CacheMode.none),
            "dual": (0, CacheMode.dual)}  # fmt: skip
    found: list[dict[str, Any]] = []
    for name, (grid, cache) in ways.items():
        policy = network(options, grid)
        length = options.length if name == "block" else options.length // options.part
        config = StaticConfig(
            gen_length=length, block_length=block, cache=cache, max_rows=options.rows,
            steps=steps * length // options.length,
        )  # fmt: skip

        def work(policy: Policy = policy, config: StaticConfig = config) -> Trace:
            return decode(policy, prompts, torch.arange(options.rows), config, KEY)

        took, columns, trace = Columns(policy).of(work)
        tokens = int(trace.committed_BC.sum())
        found.append({"cache": name, "tokens/s": tokens / took, "columns": columns / tokens})
    for row in found:
        row |= {
            "block": block,
            "a step": options.length / steps,
            "slower than block": found[0]["tokens/s"] / row["tokens/s"],
            "columns ratio": row["columns"] / found[0]["columns"],
        }
    return found


def learning(options: argparse.Namespace, block: int, per_step: float) -> list[dict[str, Any]]:
    steps = round(options.length / per_step / (options.length // block)) * (options.length // block)
    prompts = prompts_of(1, options.prompt, options.vocabulary)
    policy, full = network(options, block), network(options, 0)
    config = StaticConfig(
        gen_length=options.length, block_length=block, cache=CacheMode.block, steps=steps
    )
    trace = decode(policy, prompts, torch.arange(1), config, KEY)
    rollout, views = rolled(trace, prompts), None
    views = build_views(trace, rollout.rows_B, ReplayConfig(), 0)
    states = len(views.row_J)
    some = views.keep(views.state_N % SHARE == 0)
    local = by_local_step(views, trace)
    whole = rolled(replace(trace, block_length=0), prompts)
    row = options.prompt + trace.canvas_BC.shape[1]
    ways: dict[str, tuple[Policy, Rollout, MaskedViews, int, int]] = {
        "one forward": (policy, rollout, views, 10**9, 1),
        "2n a local step": (policy, rollout, local, 2 * row, 1),
        "a row a state": (full, whole, some, row, SHARE),
    }
    found: list[dict[str, Any]] = []
    for name, (net, rolls, seen, tokens, times) in ways.items():
        columns = Columns(net)

        def work(
            net: Policy = net, rolls: Rollout = rolls, seen: MaskedViews = seen, most: int = tokens
        ) -> None:
            learn(net, rolls, seen, most)

        work()
        tries = [columns.of(work) for _ in range(options.tries)]
        found.append(
            {
                "way": name,
                "seconds": times * min(took for took, *_ in tries),
                "columns": times * tries[0][1],
                "peak GiB": rise(work) / 2**30,
            }
        )
    for line in found:
        line |= {
            "block": block,
            "a step": options.length / steps,
            "states": states,
            "slower": line["seconds"] / found[0]["seconds"],
            "columns ratio": line["columns"] / found[0]["columns"],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--per-step", type=float, nargs="+", default=[1.0, 2.0, 2.85])
    parser.add_argument("--rows", type=int, default=8, help="of decoding")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--part", type=int, default=1, help="of the canvas, for slow caches")
    parser.add_argument("--vocabulary", type=int, default=2944)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    about = {"machine": machine("cpu"), "tokens": f"{options.prompt} + {options.length}"}
    torch.set_grad_enabled(True)
    for title, measure in (("learning", learning), ("decoding", decoding)):
        rows = [
            row
            for block in options.blocks
            for per_step in options.per_step
            for row in measure(options, block, per_step)
        ]
        path = options.json and options.json.with_name(f"{options.json.stem}-{title}.json")
        show(title, rows, path, about)


if __name__ == "__main__":
    main()
