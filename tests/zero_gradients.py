"""A rank of tests/slow/test_zero.py: the gradient of bfloat16 micro-batches, one or many."""

import json
import os
import sys
from pathlib import Path

import torch

from drift.cluster.engine import Engine
from drift.cluster.zero import MOMENTS
from drift.config.cluster import ClusterConfig
from drift.config.model import Dtype
from drift.config.optim import OptimConfig
from drift.policy.loading import load_policy

MAX_NORM = 0.5
PARTS = 512  # a power of two: each part is rounded as the whole is, on every processor


def main(model: str, stage: int, out: Path) -> None:
    cluster = ClusterConfig(num_processes=2, zero_stage=stage, threads=1)
    engine = Engine(cluster, Dtype.bfloat16, max_grad_norm=MAX_NORM)
    part = engine.partition
    policy = load_policy(model, dtype=part.dtype, zero=part.zero)
    engine.prepare(policy, OptimConfig(lr=0.0, max_grad_norm=MAX_NORM), 2)
    place, mask = torch.arange(4, 8), policy.special.mask
    ids, target = torch.tensor([[5, 6, 7, 8] + [mask] * 4]), torch.tensor([5, 9, 11, 7])
    found: dict[str, float] = {}
    for count in (1, PARTS):
        for i in range(count):
            with engine.micro_batch(last=i == count - 1):
                logp, *_ = engine.model(ids, torch.tensor([8]), 0 * place, place, target, 1.0)
                engine.backward(-logp.sum() / count / engine.num_ranks)
        found["whole" if count == 1 else "parts"] = engine.step()
        if count == 1:
            mean = [engine.full(name, MOMENTS[0]).square().sum() for name in engine.trained]
            found["clipped"] = float(sum(mean) ** 0.5) / 0.1  # 1 - beta1 of the first gradient
    (out / f"{engine.rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads sometimes abort the interpreter's own exit


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
