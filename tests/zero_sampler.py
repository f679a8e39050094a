"""A rank of tests/slow/test_zero.py: the samplers of an adapted bfloat16 policy under ZeRO-3."""

import json
import os
import sys
from pathlib import Path

import torch

from drift.cluster.engine import Engine
from drift.config.cluster import ClusterConfig
from drift.config.model import Dtype, LoraConfig, ModelConfig
from drift.config.optim import OptimConfig
from drift.policy.base import Policy
from drift.policy.loading import load_model
from drift.policy.replica import Gathered, Replica

IDS = torch.tensor([[3, 30, 9, 26, 30, 4, 1, 1, 1]])


@torch.no_grad()
def logits(policy: Policy) -> torch.Tensor:
    return policy.logits(IDS)


def main(model: str, settings: str, out: Path) -> None:
    cluster = ClusterConfig(num_processes=2, zero_stage=3, threads=1, deepspeed=settings)
    config = ModelConfig(path=model, dtype=Dtype.bfloat16, lora=LoraConfig(rank=2))
    engine = Engine(cluster, config.dtype)
    policy = load_model(config, device=engine.device, path=model, trained=engine.partition)
    engine.prepare(policy, OptimConfig(lr=1e-6), 1)
    samplers = [kind(policy, torch.bfloat16) for kind in (Replica, Gathered)]
    base = logits(policy)
    for name in engine.trained:
        if "lora_B" in name:
            engine.put(name, "weight", torch.full(engine.shapes[name], 1e-4))
    trained = logits(policy)
    found = {"changed": not torch.equal(trained, base)}
    for sampler in samplers:
        sampler.refresh(policy)
        found[type(sampler).__name__] = torch.equal(logits(sampler), trained)
    (out / f"{engine.rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads sometimes abort the interpreter's own exit


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
