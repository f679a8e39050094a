"""A rank of tests/slow/test_zero.py: ranks score different numbers of tokens, in small chunks."""

import json
import os
import sys
from pathlib import Path

import torch

from drift.cluster.engine import Engine
from drift.config.cluster import ClusterConfig
from drift.config.model import Dtype
from drift.config.optim import OptimConfig
from drift.policy import base
from drift.policy.loading import load_policy

COUNTS = [(4, 1), (0, 5), (3, 3), (5, 2)]  # tokens of each rank, at each step
base.CPU_CHUNK_BYTES = 1024  # two tokens of this vocabulary


def main(model: str, settings: str, out: Path) -> None:
    cluster = ClusterConfig(num_processes=2, zero_stage=3, threads=1, deepspeed=settings)
    engine = Engine(cluster, Dtype.float32, max_grad_norm=1.0)
    part = engine.partition
    policy = load_policy(model, dtype=part.dtype, zero=part.zero)
    assert policy.head_chunk() == 2
    engine.prepare(policy, OptimConfig(lr=0.0, max_grad_norm=1.0), len(COUNTS))
    ids = torch.tensor([[5, 6, 7, 8] + [policy.special.mask] * 5])
    target = torch.tensor([5, 9, 11, 7, 4])
    norms = []
    for counts in COUNTS:
        count = counts[engine.rank]
        place = torch.arange(4, 4 + count)
        candidate = place % 2 == 0
        with engine.micro_batch(last=True):
            inputs = (ids, torch.tensor([9]), 0 * place, place, target[:count], 1.0)
            logp, *_ = engine.model(*inputs, candidate, 0.0)
            engine.backward(-logp.sum())
        norms.append(engine.step())
    (out / f"{engine.rank}.json").write_text(json.dumps(norms))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads sometimes abort the interpreter's own exit


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
