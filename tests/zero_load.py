"""A rank of tests/slow/test_zero.py: load a checkpoint under ZeRO-3, say what this rank holds.

The second argument is what DeepSpeed believes of this CPU: 1 if it computes in float16.
"""

import json
import os
import sys
from pathlib import Path

import torch

from drift.cluster.zero import import_quietly
from drift.policy.loading import load_policy

import_quietly(on_cpu=True)

ZERO = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


def main(folder: str, float16: str, out: Path) -> None:
    import deepspeed

    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: bool(int(float16))

    deepspeed.init_distributed(dist_backend="gloo")
    largest, allocate = 0, torch.Tensor.copy_

    def copy(self: torch.Tensor, source: torch.Tensor, *rest: object) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, source.numel())
        return allocate(self, source, *rest)

    torch.Tensor.copy_ = copy  # type: ignore[method-assign,assignment]
    policy = load_policy(folder, zero=ZERO)
    torch.Tensor.copy_ = allocate  # type: ignore[method-assign]
    whole = load_policy(folder)
    same, held, total = True, 0, 0
    for mine, other in zip(policy.parameters(), whole.parameters(), strict=True):
        held, total = held + mine.ds_tensor.numel(), total + other.numel()  # type: ignore[attr-defined]
        with deepspeed.zero.GatheredParameters([mine]):
            same &= torch.equal(mine, other)
    rank = int(os.environ["RANK"])
    dtypes = sorted({str(parameter.dtype) for parameter in policy.parameters()})
    found: dict[str, object] = {"dtypes": dtypes, "same": same, "held": held, "total": total}
    found["largest"] = largest
    (out / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads sometimes abort the interpreter's own exit


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
