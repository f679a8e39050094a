"""DeepSpeed ZeRO: its configuration, and one parameter's state however it is split.

Stage 1 splits AdamW's state over the ranks, 2 the gradients too, 3 the weights too (arXiv
1910.02054). With bfloat16 the network's weights are bfloat16, the optimizer's own copy of them
(the master weights) float32.
"""

import importlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from drift.common.errors import ConfigError
from drift.config.cluster import ClusterConfig

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names of AdamW's state
WEIGHT = "weight"


def settings(
    cluster: ClusterConfig, stage: int, *, bfloat16: bool, max_grad_norm: float, on_cpu: bool
) -> dict[str, Any]:
    """The DeepSpeed configuration of a run; what `cluster.deepspeed` names goes before it.

    Micro-batches are counted by Drift, so DeepSpeed is told of one.
    """
    elements = cluster.bucket_mb * 10**6 // (2 if bfloat16 else 4)
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": not on_cpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": elements,
        "allgather_bucket_size": elements,
    }
    if stage == 3:
        zero |= {"stage3_prefetch_bucket_size": elements, "stage3_max_live_parameters": 10**9}
    if cluster.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": not on_cpu}
    if cluster.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": not on_cpu}
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW everywhere: nothing is compiled
        "bf16": {"enabled": bfloat16, "immediate_grad_update": True},  # no second gradient
        "zero_optimization": zero,
    }
    if bfloat16:  # many micro-batches add up
        found["data_types"] = {"grad_accum_dtype": "fp32"}
    if stage == 1:  # whole on each rank: reduced as they are, a bfloat16 copy would be as long
        found["communication_data_type"] = "fp32"
    return merge(found, read(cluster.deepspeed)) if cluster.deepspeed else found


def read(path: str) -> dict[str, Any]:
    """A DeepSpeed JSON file of the user's."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cluster.deepspeed={path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"cluster.deepspeed={path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"cluster.deepspeed={path} is not a JSON object")
    for key in ("optimizer", "scheduler"):
        if key in found:
            raise ConfigError(f"cluster.deepspeed={path} sets {key}; use Drift's group optim")
    return found


def merge(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """`theirs` over `ours`, at every depth."""
    both = dict(ours)
    for key, value in theirs.items():
        nested = isinstance(value, dict) and isinstance(ours.get(key), dict)
        both[key] = merge(ours[key], value) if nested else value
    return both


def import_quietly(on_cpu: bool) -> None:
    """Import DeepSpeed without its log, and on a CPU without compiling what nobody calls."""
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # a C++ extension for inference collectives, built in minutes at the first start
    backend: Any = importlib.import_module("deepspeed.comm.torch")
    backend.build_shm_op = lambda: None
    stage_1: Any = importlib.import_module("deepspeed.runtime.bf16_optimizer")
    stage_1.see_memory_usage = lambda *_, **__: None  # it prints


@contextmanager
def gathered(
    parameters: Iterable[Tensor], split: bool, writer: int | None = None
) -> Iterator[None]:
    """The whole tensors inside the block, on every rank; a collective under stage 3.

    Args:
        parameters: of a module.
        split: they are split over ranks (stage 3); otherwise nothing is done.
        writer: the rank whose changes are kept; None: nobody changes anything.
    """
    if not split:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=writer):
        yield


def shape(parameter: Any, split: bool) -> tuple[int, ...]:
    """Of the whole tensor."""
    return tuple(parameter.ds_shape if split and is_split(parameter) else parameter.shape)


def is_split(parameter: Any) -> bool:
    """An adapter is whole until `deepspeed.initialize`, its base split since it was loaded."""
    from deepspeed.runtime.zero.partition_parameters import is_zero_param

    return bool(is_zero_param(parameter))


@contextmanager
def scaled(optimizer: Any, scale: float) -> Iterator[None]:
    """Take the step inside the block on `scale` times the gradient."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    if isinstance(optimizer, BF16_Optimizer):
        if scale != 1:
            for gradient in optimizer.fp32_groups_gradients_flat:
                gradient.mul_(scale)
        yield
        return
    optimizer.loss_scale = 1 / scale  # the step divides the gradient and its norm by it
    try:
        yield
    finally:
        optimizer.loss_scale = 1.0


def start_moments(optimizer: Any) -> None:
    """Make AdamW's state now, as zeros: it can then be loaded, and no memory is missing later.

    Args:
        optimizer: DeepSpeed's, over torch's AdamW.
    """
    inner = optimizer.optimizer
    for group in flat_weights(optimizer):
        inner.state[group] = {"step": torch.zeros(())}
        for key in MOMENTS:
            inner.state[group][key] = torch.zeros_like(group.data)
    if optimizer_stage(optimizer) < 3:
        optimizer._lazy_init_hp_params_optimizer_state()


def optimizer_stage(optimizer: Any) -> int:
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    return 3 if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3) else 2


def flat_weights(optimizer: Any) -> list[Tensor]:
    """This rank's part of the master weights, as torch's AdamW sees them."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    if optimizer_stage(optimizer) == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    if isinstance(optimizer, BF16_Optimizer):
        return list(optimizer.fp32_groups_flat_partition)
    return list(optimizer.single_partition_of_fp32_groups)


def set_adam_steps(optimizer: Any, steps: int) -> None:
    """What AdamW's bias correction counts from."""
    for group in flat_weights(optimizer):
        optimizer.optimizer.state[group]["step"].fill_(steps)


def full(parameter: nn.Parameter, key: str) -> Tensor:
    """The whole float32 master weight, or a moment, of a trained parameter; a collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found = (
        safe_get_full_fp32_param(parameter)
        if key == WEIGHT
        else safe_get_full_optimizer_state(parameter, key)
    )
    assert found is not None
    return found


@torch.no_grad()
def put(parameter: Any, key: str, value: Tensor, stage: int) -> None:
    """Overwrite this rank's part of what `full` gives; `value` is the whole tensor."""
    from deepspeed import utils

    if stage < 3:
        if key == WEIGHT:
            utils.safe_set_full_fp32_param(parameter, value)
            parameter.copy_(value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, key)
        return
    size = parameter.ds_tensor.numel()
    padded = F.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
    part = padded[size * dist.get_rank() :][:size]
    if key == WEIGHT:
        utils.safe_set_local_fp32_param(parameter, part)
        parameter.ds_tensor.copy_(part)
    else:
        utils.safe_set_local_optimizer_state(parameter, part, key)


ZeroConfig = dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """How a policy is held that is trained: Partition(dtype=torch.float32, zero=None)."""

    dtype: torch.dtype  # of what the optimizer changes
    zero: ZeroConfig  # as `load_policy` takes it


WHOLE = Partition(dtype=torch.float32, zero=None)  # by a process alone
