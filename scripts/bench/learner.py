"""Speed and memory of one update: forward and backward of M rows, head on the scored tokens only.

python scripts/bench/learner.py                            # two CPU cores, float32, 1 minute
python scripts/bench/learner.py --shape llada-8b --device cuda --dtype bfloat16 --lora 8 \
    --checkpointing --rows 8
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import common
import torch
from common import machine, machine_rates, peak_gib, prompts_of, random_policy, seconds, show
from torch.profiler import ProfilerActivity, profile

from drift.config.model import AttentionBackend, Dtype, LoraConfig, ModelConfig
from drift.config.objective import ObjectiveConfig
from drift.config.optim import OptimConfig
from drift.config.rollout import RolloutConfig
from drift.planning.cost import head_flops, layer_flops
from drift.planning.memory import GIB, Sizes, training, updating, words
from drift.policy import lora
from drift.policy.base import Policy


def flops(policy: Policy, tokens: int, scored: int, size: int) -> float:
    """Forward and backward: three times the forward; what is computed twice counts once (MFU).

    Under LoRA the gradients of the frozen weights are not computed: one forward less.
    """
    b = policy.backbone.config
    passes = 3 - (policy.adapter is not None)
    return passes * (layer_flops(b, tokens, scored, size) + head_flops(b, scored))


def update(
    policy: Policy, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> None:
    logp_N, *_ = policy(**batch, temperature=1.0)
    (-logp_N.mean()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def held_tensors(policy: Policy, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Weights and moments."""
    return [*policy.parameters(), *(t for s in optimizer.state.values() for t in s.values())]


def rise(work: Callable[[], Any]) -> int:
    """Bytes of tensors at the peak of `work`, above those at its beginning (on a CPU).

    Resident memory would count what the allocator keeps, too: about 0.8 GiB of the small shape.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiled.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    changes.sort(key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in changes))


def batch_of(options: argparse.Namespace, policy: Policy) -> dict[str, torch.Tensor]:
    """M rows of S tokens whose canvas is masked; every `1 / scored`-th canvas token is scored."""
    size, device = options.prompt + options.length, options.device
    ids = torch.tensor(prompts_of(options.rows, size, policy.backbone.config.vocab_size))
    target = ids.clone()
    ids[:, options.prompt :] = policy.special.mask
    chosen = torch.arange(options.prompt, size)[:: round(1 / options.scored)]
    row = torch.arange(options.rows).repeat_interleave(len(chosen))
    position = chosen.repeat(options.rows)
    found = {
        "ids_MS": ids,
        "lengths_M": torch.full((options.rows,), size),
        "row_N": row,
        "position_N": position,
        "target_N": target[row, position],
    }
    return {name: tensor.to(device) for name, tensor in found.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=common.SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=common.DTYPES, default="float32")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--length", type=int, default=448)
    parser.add_argument("--scored", type=float, default=0.25, help="share of the canvas")
    parser.add_argument("--lora", type=int, default=0, help="rank; 0 trains every weight")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument(
        "--attention", choices=[name.value for name in AttentionBackend], default="sdpa"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    # without an adapter the weights are float32 and the forward is autocast's, as in drift.train
    dtype = options.dtype if options.lora else "float32"
    policy = random_policy(options.shape, dtype, options.device)
    policy.backbone.gradient_checkpointing = options.checkpointing
    policy.backbone.attention = AttentionBackend(options.attention)
    settings = LoraConfig(rank=options.lora)
    if options.lora:
        lora.attach_new(policy, settings, options.shape)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    batch = batch_of(options, policy)
    mixed = torch.autocast(
        torch.device(options.device).type, torch.bfloat16, enabled=options.dtype == "bfloat16"
    )
    with mixed:
        update(policy, batch, optimizer)  # kernels are chosen and memory is taken
        took = min(
            seconds(lambda: update(policy, batch, optimizer), options.device)[0] for _ in range(3)
        )
        peak = peak_gib(options.device)
        if peak is None:
            stays = {t.data_ptr(): t.nbytes for t in held_tensors(policy, optimizer)}
            peak = (sum(stays.values()) + rise(lambda: update(policy, batch, optimizer))) / GIB
    size, tokens = options.prompt + options.length, batch["ids_MS"].numel()
    work = flops(policy, tokens, len(batch["row_N"]), size)
    matmul, _ = machine_rates(options.dtype, options.device)
    model = ModelConfig(
        dtype=Dtype(options.dtype), lora=settings, gradient_checkpointing=options.checkpointing
    )
    sizes = Sizes(
        model=model, backbone=policy.backbone.config, row=size, on_cpu=options.device == "cpu"
    )
    objective, rollout = ObjectiveConfig(), RolloutConfig()
    optim = OptimConfig(tokens_per_forward=tokens)
    backward = training(sizes, objective, optim, rollout)
    step = updating(sizes, objective, rollout)
    row: dict[str, Any] = {
        "rows": options.rows,
        "tokens": tokens,
        "scored": len(batch["row_N"]),
        "seconds": took,
        "tokens/s": tokens / took,
        "TFLOP": work / 1e12,
        "MFU": work / took / matmul,
        "peak GiB": peak,
        "formula GiB": max(backward.total, step.total) / GIB,
    }
    about = {
        "machine": machine(options.device),
        "shape": f"{options.shape}, {options.dtype}, LoRA rank {options.lora}, "
        f"checkpointing {options.checkpointing}, attention {options.attention}",
        "matmul": f"{matmul / 1e9:.0f} GFLOP/s",
        "backward begins": words(backward),
        "AdamW's step": words(step),
    }
    show("one update", [row], options.json, about)


if __name__ == "__main__":
    main()
