"""One rank over Accelerate and DeepSpeed: processes, precision, backward, steps, sums over ranks.

Everything that depends on how many processes train is here. The rest of Drift sees tensors.
"""

import math
import os
import resource
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from drift.cluster import rendezvous, zero
from drift.cluster.watchdog import Watchdog
from drift.cluster.zero import Partition
from drift.common import ranks, terminal
from drift.common.errors import ConfigError, TrainingError
from drift.config.checks import refused_share
from drift.config.cluster import ClusterConfig
from drift.config.model import Dtype
from drift.config.optim import OptimConfig, Schedule

DEFAULT_THREADS = torch.get_num_threads()
NOT_OURS = ("USE_DEEPSPEED", "USE_FSDP", "USE_CPU", "DYNAMO_BACKEND")  # of `accelerate launch`


def gpu_names() -> list[str]:
    """The GPUs that this process sees."""
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def lr_factor(schedule: Schedule, warmup: int, total: int, step: int) -> float:
    """What the learning rate is multiplied with at an optimizer step, counted from 0.

    Linear from 0 over the warm-up; then constant, or falling to 0 at the last step, linearly or as
    half a cosine (the shapes of transformers' schedules, whose import takes seconds).
    """
    if step < warmup:
        return step / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    shapes = {
        Schedule.constant: 1.0,
        Schedule.linear: 1.0 - done,
        Schedule.cosine: 0.5 * (1.0 + math.cos(math.pi * done)),
    }
    return shapes[schedule]


class Engine:
    """One process of a run, and what it shares with the others."""

    def __init__(self, cluster: ClusterConfig, dtype: Dtype, *, max_grad_norm: float = 1.0):
        for name in NOT_OURS:
            os.environ.pop(f"ACCELERATE_{name}", None)
        # of torch's collectives, at every call of DeepSpeed's
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        on_cpu = not torch.cuda.is_available()
        default = 3 if ranks.find().number > 1 and not on_cpu else 0
        self.stage = default if cluster.zero_stage is None else cluster.zero_stage
        self.place = rendezvous.settle(cluster, always=self.stage > 0)
        share = max(1, DEFAULT_THREADS // self.place.local_number)
        torch.set_num_threads(cluster.threads or share)
        if not on_cpu:
            torch.cuda.reset_peak_memory_stats()
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()  # what an earlier job of a sweep compiled counts for its limits
        AcceleratorState._reset_state()  # a sweep runs its jobs, of any precision, in one process
        if not dist.is_initialized():
            PartialState._reset_state()
        self.bfloat16 = dtype == Dtype.bfloat16
        plugin = None
        if self.stage:
            zero.import_quietly(on_cpu)
            from accelerate.utils import DeepSpeedPlugin

            self.zero_settings = zero.settings(
                cluster,
                self.stage,
                bfloat16=self.bfloat16,
                max_grad_norm=max_grad_norm,
                on_cpu=on_cpu,
            )
            plugin = DeepSpeedPlugin(hf_ds_config=self.zero_settings)
        group = InitProcessGroupKwargs(
            backend="gloo" if on_cpu else "nccl",
            timeout=timedelta(seconds=cluster.timeout_s + 60),  # the watchdog speaks first
        )
        self.accelerator = Accelerator(
            mixed_precision="bf16" if self.bfloat16 else "no",
            cpu=on_cpu and not self.stage and self.place.number > 1,
            deepspeed_plugin=plugin,
            kwargs_handlers=[group] if self.place.number > 1 or self.stage else None,
        )
        assert self.accelerator.num_processes == self.place.number
        self.model: Any = None  # the policy as Accelerate wraps it
        self.updates = 0  # optimizer steps of the schedule, skipped ones included
        self.adam_steps = 0  # optimizer steps that were taken
        self.watchdog = Watchdog(cluster.timeout_s, self.rank)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def num_ranks(self) -> int:
        return self.place.number

    @property
    def lr(self) -> float:
        """The learning rate of the next optimizer step."""
        optim = self.optim
        factor = lr_factor(optim.schedule, optim.warmup_steps, self.num_updates, self.updates)
        return optim.lr * factor

    @property
    def partition(self) -> Partition:
        """How a trained policy is to be loaded: in which precision, whole or in parts."""
        low = bool(self.stage) and self.bfloat16
        return Partition(
            dtype=torch.bfloat16 if low else torch.float32,
            zero=self.zero_settings if self.stage == 3 else None,
        )

    def share(self, count: int, what: str) -> slice:
        """This rank's part of `count` things, as many as every other rank has.

        Raises:
            ConfigError: the number of ranks does not divide `count`.
        """
        if reason := refused_share(what, count, self.num_ranks):
            raise ConfigError(reason)
        size = count // self.num_ranks
        return slice(self.rank * size, (self.rank + 1) * size)

    def autocast(self) -> AbstractContextManager[Any]:
        """The training precision, for forwards that do not go through `model`."""
        return nullcontext() if self.stage else self.accelerator.autocast()

    def prepare(
        self,
        module: nn.Module,
        optim: OptimConfig,
        num_updates: int,
        *,
        lrs: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Make `module` trainable: `model` is its wrapped form, to be called in training.

        Args:
            module: its parameters that require a gradient are trained.
            optim: AdamW's settings and the schedule.
            num_updates: optimizer steps of the whole run, the schedule's length.
            lrs: learning rates of the parameters whose names begin with a key, where they are not
                `optim.lr`; the schedule is the same.
        """
        self.optim, self.num_updates = optim, num_updates
        self.trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if self.stage:
            for parameter in self.trained.values():  # an adapter is float32 until here
                parameter.data = parameter.data.to(self.partition.dtype)
        self.shapes = {name: zero.shape(p, self.stage == 3) for name, p in self.trained.items()}
        parts: dict[float, list[Tensor]] = {}
        for name, parameter in self.trained.items():
            own = [lr / optim.lr for prefix, lr in lrs.items() if name.startswith(prefix)]
            parts.setdefault(own[0] if own else 1.0, []).append(parameter)
        optimizer = torch.optim.AdamW(
            [{"params": part, "lr_ratio": ratio} for ratio, part in parts.items()],
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
        )
        self.model, self.optimizer = self.accelerator.prepare(module, optimizer)
        if self.stage:
            zero.start_moments(self.optimizer.optimizer)

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward of one micro-batch: ranks exchange gradients at the last."""
        if self.stage:
            self.model.set_gradient_accumulation_boundary(is_boundary=last)
            yield
        elif last or self.num_ranks == 1:
            yield
        else:
            with self.model.no_sync():
                yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch; the losses of all micro-batches and ranks add up."""
        loss = loss * self.num_ranks  # the wrappers take the mean over ranks
        if self.stage:
            self.model.backward(loss)
        else:
            self.accelerator.backward(loss)

    def step(self, scale: float = 1.0) -> float:
        """Clip, update, advance the schedule; returns the gradient's norm before clipping.

        Args:
            scale: multiplies the gradient first.

        Raises:
            TrainingError: the norm is not finite; what the run has saved is whole.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["lr_ratio"]
        if self.stage:
            with zero.scaled(self.optimizer.optimizer, scale):
                self.model.step()
            norm = float(self.model.get_global_grad_norm())
        else:
            limit, parameters = self.optim.max_grad_norm, list(self.model.parameters())
            if scale != 1:
                torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], scale)
            clipped = self.accelerator.clip_grad_norm_(parameters, limit)
            assert clipped is not None
            norm = float(clipped)
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient's norm is {norm}: lower optim.lr or objective.kl_coef, or use "
                "model.dtype=float32; what was saved before is whole"
            )
        if not self.stage:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.adam_steps += 1
        self.skip_step()
        return norm

    def skip_step(self) -> None:
        """Advance the schedule alone, for a step that has nothing to learn from."""
        self.updates += 1

    def full(self, name: str, key: str) -> Tensor:
        """The whole float32 weight (`weight`) or moment (`zero.MOMENTS`) of a trained parameter.

        Every rank calls, with the same names in the same order.
        """
        terminal.beat()
        parameter = self.trained[name]
        if self.stage:
            return zero.full(parameter, key)
        if key == zero.WEIGHT:
            return parameter.detach()
        state = self.optimizer.optimizer.state
        return state[parameter][key] if parameter in state else torch.zeros_like(parameter)

    @torch.no_grad()
    def put(self, name: str, key: str, value: Tensor) -> None:
        """Overwrite what `full` gives; each rank keeps its part."""
        terminal.beat()
        parameter, value = self.trained[name], value.to(self.device)
        if self.stage:
            zero.put(parameter, key, value, self.stage)
        elif key == zero.WEIGHT:
            parameter.copy_(value)
        else:
            self.optimizer.optimizer.state[parameter][key] = value.clone()

    def progress(self) -> dict[str, int]:
        """What `set_progress` takes."""
        return {"updates": self.updates, "adam_steps": self.adam_steps}

    def set_progress(self, updates: int, adam_steps: int) -> None:
        """Go on from so many optimizer steps; after the moments are in place."""
        self.updates, self.adam_steps = updates, adam_steps
        if self.stage:
            zero.set_adam_steps(self.optimizer.optimizer, adam_steps)
            return
        for state in self.optimizer.optimizer.state.values():
            state["step"] = torch.tensor(float(adam_steps))

    def reduce(self, values: list[float], operation: Any) -> list[float]:
        """Each value over all ranks, in float64."""
        if self.num_ranks == 1 or not values:
            return list(values)
        local = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(local, op=operation)
        return local.tolist()

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """The sum over ranks of each value."""
        names = sorted(values)
        total = self.reduce([values[name] for name in names], dist.ReduceOp.SUM)
        return dict(zip(names, total, strict=True))

    def max(self, value: float) -> float:
        return self.reduce([value], dist.ReduceOp.MAX)[0]

    def gather(self, local: list[Any]) -> list[Any]:
        """The lists of all ranks behind one another, on every rank."""
        if self.num_ranks == 1:
            return local
        found: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(found, local)
        return [item for part in found for item in part]

    def agree(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        return self.gather([value])[0]

    def assert_same(self, what: str, value: Any) -> None:
        """Stop before ranks that differ wait for one another for ever.

        Raises:
            TrainingError: names the ranks and their values.
        """
        found = self.gather([value])
        if any(other != found[0] for other in found):
            shown = ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(found))
            raise TrainingError(f"the ranks differ in {what}: {shown}")

    def barrier(self) -> None:
        if self.num_ranks > 1:
            dist.barrier()

    def synchronize(self) -> None:
        """Wait for the device, so that a clock measures work and not its start."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def memory_bytes(self) -> int:
        """What the GPU has, or the machine."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        return psutil.virtual_memory().total

    def peak_memory_gib(self) -> float:
        """Peak of the GPU's allocated memory, or of the process's resident memory on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

    def close(self) -> None:
        """Leave the other ranks in order; one process alone has nothing to do."""
        self.watchdog.stop()
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
