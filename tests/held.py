"""One rank of a test: what it holds after a step, in bytes, and what drift/planning/memory.py says.

torchrun --nproc-per-node=2 tests/held.py STAGE DTYPE DEEPSPEED_JSON
"""

import gc
import json
import os
import sys

import torch

from drift.cluster.engine import Engine
from drift.config.cluster import ClusterConfig
from drift.config.model import Dtype, ModelConfig
from drift.config.objective import ObjectiveConfig
from drift.config.optim import OptimConfig
from drift.config.rollout import RolloutConfig, RolloutWeights
from drift.planning.memory import Sizes, held, sharding_of
from drift.policy.loading import load_model


def live_bytes() -> int:
    """Of all storages that Python reaches through a tensor."""
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            split = vars(thing).get("ds_tensor")
            for tensor in (thing, thing.grad if thing.is_leaf else None, split):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def main() -> None:
    stage, dtype, path = int(sys.argv[1]), Dtype(sys.argv[2]), sys.argv[3]
    cluster = ClusterConfig(
        name="test", num_processes=2, threads=1, zero_stage=stage, bucket_mb=1, deepspeed=path
    )
    model = ModelConfig(
        name="tiny", family="llada", path="data/tiny-countdown", dtype=dtype, lr=1e-4
    )
    engine = Engine(cluster, dtype, max_grad_norm=1.0)
    before = live_bytes()
    policy = load_model(model, device=engine.device, trained=engine.partition)
    engine.prepare(policy, OptimConfig(lr=1e-4), 10)
    row = torch.arange(4)
    batch = (torch.full((4, 16), 5), torch.full((4,), 16), row, row, torch.full((4,), 6))
    with engine.micro_batch(last=True):
        engine.backward(-engine.model(*batch, 1.0)[0].sum())
    engine.step()
    sizes = Sizes(model=model, backbone=policy.backbone.config, row=16, split=sharding_of(cluster))
    said = held(sizes, ObjectiveConfig(), RolloutConfig(weights=RolloutWeights.shared))
    if engine.rank == 0:
        print(json.dumps({"held": live_bytes() - before, "said": said}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
