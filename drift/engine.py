"""The seam to Accelerate: devices, precision, backward, optimizer steps, sums over ranks.

Everything that depends on how many processes train is here. The rest of Drift sees tensors.
"""

import math
import resource
import sys
import warnings
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from drift.config import ClusterConfig, Dtype, OptimConfig, Schedule
from drift.errors import CheckpointError, TrainingError
from drift.policy.base import Policy

DEFAULT_THREADS = torch.get_num_threads()


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

    def __init__(self, cluster: ClusterConfig, dtype: Dtype):
        torch.set_num_threads(cluster.threads or DEFAULT_THREADS)
        AcceleratorState._reset_state()  # a sweep runs its jobs, of any precision, in one process
        precision = "bf16" if dtype == Dtype.bfloat16 else "no"
        self.accelerator = Accelerator(mixed_precision=precision)
        self.model: nn.Module | None = None

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def num_ranks(self) -> int:
        return self.accelerator.num_processes

    @property
    def lr(self) -> float:
        """The learning rate of the next optimizer step."""
        return float(self.scheduler.get_last_lr()[0])

    def autocast(self) -> AbstractContextManager[Any]:
        """The training precision, for forwards that do not go through `model`."""
        return self.accelerator.autocast()

    def prepare(self, policy: Policy, optim: OptimConfig, num_updates: int) -> None:
        """Make `policy` trainable: `model` is its wrapped form, to be called in training.

        Args:
            policy: its parameters that require a gradient are trained.
            optim: AdamW's settings and the schedule.
            num_updates: optimizer steps of the whole run, the schedule's length.
        """
        self.settings = optim
        trained = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained,
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
        )
        factor = partial(lr_factor, optim.schedule, optim.warmup_steps, num_updates)
        self.scheduler: Any = LambdaLR(optimizer, factor)
        self.model, self.optimizer = self.accelerator.prepare(policy, optimizer)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch; the losses of all micro-batches and ranks add up."""
        self.accelerator.backward(loss * self.num_ranks)  # the wrapper takes the mean over ranks

    def step(self) -> float:
        """Clip, update, advance the schedule; returns the gradient's norm before clipping.

        Raises:
            TrainingError: the norm is not finite; the weights are as they were.
        """
        assert self.model is not None
        parameters = self.model.parameters()
        clipped = self.accelerator.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        assert clipped is not None
        norm = float(clipped)
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient's norm is {norm}: lower optim.lr or objective.kl_coef, or use "
                "model.dtype=float32; the last checkpoint is whole"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.skip_step()
        return norm

    def skip_step(self) -> None:
        """Advance the schedule alone, for a step that has nothing to learn from."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step()

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """The sum over ranks of each value, in float64."""
        if self.num_ranks == 1 or not values:
            return dict(values)
        names = sorted(values)
        local = torch.tensor([values[name] for name in names], dtype=torch.float64)
        total = self.accelerator.reduce(local.to(self.device), reduction="sum")
        assert isinstance(total, Tensor)
        return dict(zip(names, total.tolist(), strict=True))

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

    def save_state(self, folder: Path) -> None:
        """Optimizer, schedule and torch's random state, as tensors and plain values.

        Drift draws nothing from torch's generators (see rng.py); dropout of a policy would.
        """
        state = {
            "optimizer": self.optimizer.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        torch.save(state, folder / "trainer.pt")

    def load_state(self, folder: Path) -> None:
        """Take up what `save_state` wrote; nothing but tensors and plain values is read.

        The settings of `optim` stay those of this run, also where they are not the saved ones.
        """
        adamw = self.optimizer.optimizer
        settings = {key: adamw.param_groups[0][key] for key in ("betas", "eps", "weight_decay")}
        try:
            state = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
            adamw.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"] | {"base_lrs": [self.settings.lr]})
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{folder}/trainer.pt does not load: {reason}") from None
        factor = self.scheduler.lr_lambdas[0](self.scheduler.last_epoch)
        lr = self.settings.lr * factor
        adamw.param_groups[0].update(settings, lr=lr, initial_lr=self.settings.lr)
        self.scheduler._last_lr = [lr]
        torch.set_rng_state(state["torch_rng"])
