"""What the benchmarks share: shapes, random policies, the machine's own rates, tables."""

import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(SCRIPTS.parent), str(SCRIPTS)]

import torch
from rich.console import Console
from rich.table import Table

from drift.cluster.engine import gpu_names
from drift.planning.cost import head_flops, layer_flops
from drift.planning.memory import num_parameters
from drift.planning.shapes import SHAPES as SHAPES
from drift.policy.backbone import Backbone
from drift.policy.base import Policy, SpecialIds
from drift.policy.loading import FAMILIES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_policy(name: str, dtype: str, device: str, vocabulary: int | None = None) -> Policy:
    """Random weights in one of SHAPES; mask id 1, padding and stop id 0."""
    family, sizes = SHAPES[name]
    sizes = replace(sizes, vocab_size=vocabulary or sizes.vocab_size)
    with torch.device("meta"):
        backbone = Backbone(sizes)
    backbone = backbone.to(DTYPES[dtype]).to_empty(device=device)
    backbone.init_weights(torch.Generator(device).manual_seed(0))
    return Policy(backbone, FAMILIES[family], SpecialIds(mask=1, pad=0, stop=(0,)))


def prompts_of(count: int, length: int, vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, vocab_size, (count, length), generator=generator).tolist()


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.get_device_module(device).synchronize()


def seconds(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    synchronize(device)
    started = time.perf_counter()
    result = work()
    synchronize(device)
    return time.perf_counter() - started, result


def best(work: Callable[[], Any], device: str, tries: int) -> float:
    return min(seconds(work, device)[0] for _ in range(tries))


def machine_rates(dtype: str, device: str) -> tuple[float, float]:
    """FLOP/s of a large matmul, bytes/s of a large copy (read + write)."""
    size, largest = (256, 2048) if device == "cpu" else (8192, 8192)
    while True:  # some processors multiply bfloat16 a thousand times slower than others
        a = torch.randn(size, size, device=device).to(DTYPES[dtype])
        took = best(lambda a=a: a @ a, device, 5)
        if took > 0.1 or size == largest:
            break
        size *= 2
    matmul = 2 * size**3 / took
    big = torch.empty(64 * 2**20 if device == "cpu" else 2**30, dtype=torch.uint8, device=device)
    other = torch.empty_like(big)
    return matmul, 2 * big.numel() / best(lambda: other.copy_(big), device, 5)


def reset_peak(device: str) -> None:
    if device != "cpu":
        torch.get_device_module(device).reset_peak_memory_stats()


def peak_gib(device: str) -> float | None:
    if device == "cpu":
        return None
    return torch.get_device_module(device).max_memory_allocated() / 2**30


def machine(device: str) -> str:
    where = gpu_names()[0] if device != "cpu" else f"{platform.machine()} CPU"
    return f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}"


@dataclass
class Meter:
    """FLOPs and bytes of the work that a policy was asked for, counted from the shapes."""

    policy: Policy
    flops: float = 0.0
    bytes: float = 0.0
    bound_s: float = 0.0
    matmul: float = 1.0
    copy: float = 1.0

    def add(self, flops: float, moved: float) -> None:
        self.flops += flops
        self.bytes += moved
        self.bound_s += max(flops / self.matmul, moved / self.copy)

    def layers(self, tokens: int, last: int, keys: float, rows: int) -> None:
        """`tokens` columns through all layers, `last` of them through the end of the last one."""
        b = self.policy.backbone.config
        width = self.policy.backbone.embed.weight.element_size()
        kv = 2 * b.num_kv_heads * b.head_size
        weights = num_parameters(b) - 2 * b.vocab_size * b.hidden_size
        flops = layer_flops(b, tokens, last, keys)
        self.add(flops, width * (weights + b.num_layers * rows * keys * kv))

    def head(self, positions: int) -> None:
        b = self.policy.backbone.config
        width = self.policy.backbone.embed.weight.element_size()
        size = b.vocab_size * b.hidden_size
        self.add(head_flops(b, positions), width * size + 4.0 * positions * b.vocab_size)


def show(title: str, rows: list[dict[str, Any]], path: Path | None, about: dict[str, Any]) -> None:
    """A table on the terminal; the same and what is known of the machine as JSON."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=title)
    for row in rows:
        cells = (row.get(column) for column in columns)
        table.add_row(
            *(f"{c:.3g}" if isinstance(c, float) else str("" if c is None else c) for c in cells)
        )
    Console(width=200).print(table)
    for key, value in about.items():
        print(f"{key}: {value}")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"title": title, **about, "rows": rows}, indent=2) + "\n")
