"""LLaDA-8B and Dream-7B with random weights on one GPU: load, doctor, forward, LoRA step, memory.

python scripts/bench/gpu_smoke.py                          # both, on cuda, bfloat16; 32 GB of disk
python scripts/bench/gpu_smoke.py --shape small --device cpu
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch
from blank_tiny import make_tokenizer
from common import machine, peak_gib, random_policy, reset_peak, seconds, show

from drift.common import rng
from drift.common.types import Example
from drift.config.model import Dtype, LoraConfig
from drift.config.rollout import StaticConfig
from drift.config.task import EndSuppression
from drift.planning.diagnosis import Inspection, examine
from drift.policy import lora
from drift.policy.base import Policy
from drift.policy.loading import load_policy, save_policy
from drift.rollout.decoding import decode


def write_checkpoint(shape: str, folder: Path, device: str) -> float:
    """Random bfloat16 weights under official names, in shards of 5 GB; returns GB."""
    policy = random_policy(shape, "bfloat16", device)
    policy._tokenizer = make_tokenizer(policy.family.name)
    ids = {
        f"{n}_token_id": getattr(policy.tokenizer, f"{n}_token_id") for n in ("mask", "pad", "eos")
    }
    policy.raw_config = ids
    policy.special = type(policy.special)(
        mask=ids["mask_token_id"], pad=ids["pad_token_id"], stop=(ids["eos_token_id"],)
    )
    save_policy(policy, folder, dtype=torch.bfloat16)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9


def inspection(policy: Policy, length: int) -> Inspection:
    rollout = StaticConfig(
        gen_length=length,
        block_length=min(32, length),
        steps=length // 4,
        suppress_end=EndSuppression.token,
        max_rows=8,
    )
    texts = [f"{i} {i + 3} 5=7" for i in range(8)]
    prompts = policy.tokenizer(texts, add_special_tokens=False)["input_ids"]
    examples = [Example(key=text, prompt=text, fields={}) for text in texts]
    return Inspection(
        policy=policy,
        dtype=Dtype.bfloat16,
        examples=examples,
        prompts=prompts,
        answers=[[] for _ in texts],
        shown=texts[0],
        rollout=rollout,
    )


def lora_step(policy: Policy, optimizer: torch.optim.Optimizer, length: int) -> None:
    """Forward, backward and AdamW of an adapter on 8 rows whose canvas is masked."""
    size, device = 64 + length, policy.device
    ids = torch.randint(6, 120, (8, size), device=device)
    row = torch.arange(8, device=device).repeat_interleave(length // 4)
    position = torch.arange(64, size, 4, device=device).repeat(8)
    target = ids[row, position]
    ids[:, 64:] = policy.special.mask
    with torch.autocast(device.type, torch.bfloat16):
        lengths = torch.full((8,), size, device=device)
        logp_N, *_ = policy(ids, lengths, row, position, target, 1.0)
        (-logp_N.mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


def smoke(shape: str, device: str, length: int, folder: Path) -> tuple[dict[str, Any], list[str]]:
    size = write_checkpoint(shape, folder, device)
    if device != "cpu":
        torch.get_device_module(device).empty_cache()
        reset_peak(device)
    load_s, policy = seconds(
        lambda: load_policy(folder, dtype=torch.bfloat16, device=device), device
    )
    weights_gib = peak_gib(device)
    started = time.perf_counter()
    findings = examine(inspection(policy, length))
    doctor_s = time.perf_counter() - started
    ids = torch.randint(6, 120, (8, 64 + length), device=device)
    with torch.no_grad():
        policy.backbone(ids)
        forward_s, hidden = seconds(lambda: policy.backbone(ids), device)
    prompts = [[6 + i] * 64 for i in range(8)]
    config = inspection(policy, length).rollout
    decode_s, trace = seconds(
        lambda: decode(policy, prompts, torch.arange(8), config, rng.stream(0, "smoke")), device
    )
    lora.attach_new(policy, LoraConfig(rank=8), "random")
    policy.backbone.gradient_checkpointing = True
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-4)
    lora_step(policy, optimizer, length)  # kernels are chosen and memory is taken
    step_s, _ = seconds(lambda: lora_step(policy, optimizer, length), device)
    row = {
        "shape": shape,
        "GB on disk": size,
        "load s": load_s,
        "weights GiB": weights_gib,
        "doctor s": doctor_s,
        "forward ms (8 rows)": 1000 * forward_s,
        "finite": bool(hidden.isfinite().all()),
        "decode tokens/s": int(trace.committed_BC.sum()) / decode_s,
        "LoRA step s": step_s,
        "peak GiB": peak_gib(device),
    }
    lines = [f"{f.name}: {f.text}: {'ok' if f.healthy else 'FAILED'}" for f in findings]
    return row, lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    both = ["llada-8b", "dream-7b"]
    parser.add_argument("--shape", choices=common.SHAPES, nargs="+", default=both)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--length", type=int, default=256, help="canvas; the prompt has 64 tokens")
    parser.add_argument("--folder", type=Path, help="for the checkpoints; removed at the end")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {"machine": machine(options.device)}
    for shape in options.shape:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            row, lines = smoke(shape, options.device, options.length, Path(folder))
        rows.append(row)
        about |= {f"doctor of {shape}": "\n  " + "\n  ".join(lines)}
    show("random weights, bfloat16", rows, options.json, about)


if __name__ == "__main__":
    main()
