"""The seam to Accelerate: devices, precision, backward, optimizer steps, sums over ranks.

Everything that depends on how many processes train is here. The rest of Drift sees tensors.
"""

import resource
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from drift.config import ClusterConfig, Dtype, OptimConfig
from drift.errors import CheckpointError, SyncError
from drift.policy.base import Policy


def gpu_names() -> list[str]:
    """The GPUs that this process sees."""
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


class Engine:
    """One process of a run, and what it shares with the others."""

    def __init__(self, cluster: ClusterConfig, dtype: Dtype):
        if cluster.threads is not None:
            torch.set_num_threads(cluster.threads)
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
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def lr(self) -> float:
        """The learning rate of the next optimizer step."""
        return float(self.scheduler.get_last_lr()[0])

    def autocast(self) -> AbstractContextManager[Any]:
        """The training precision, for forwards that do not go through `model`."""
        return self.accelerator.autocast()

    def prepare(self, policy: Policy, optim: OptimConfig, num_steps: int) -> None:
        """Make `policy` trainable: `model` is its wrapped form, to be called in training."""
        optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
        )
        self.scheduler = get_scheduler(
            "constant_with_warmup" if optim.schedule == "constant" else optim.schedule.value,
            optimizer,
            num_warmup_steps=optim.warmup_steps,
            num_training_steps=num_steps,
        )
        self.max_grad_norm = optim.max_grad_norm
        self.model, self.optimizer = self.accelerator.prepare(policy, optimizer)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch; the losses of all micro-batches and ranks add up."""
        self.accelerator.backward(loss * self.num_ranks)  # the wrapper takes the mean over ranks

    def step(self) -> float:
        """Clip, update, advance the schedule; returns the gradient's norm before clipping."""
        assert self.model is not None
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm) if norm is not None else 0.0

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """The sum over ranks of each value, in float64."""
        if self.num_ranks == 1 or not values:
            return dict(values)
        names = sorted(values)
        local = torch.tensor([values[name] for name in names], dtype=torch.float64)
        total = self.accelerator.reduce(local.to(self.device), reduction="sum")
        assert isinstance(total, Tensor)
        return dict(zip(names, total.tolist(), strict=True))

    def assert_same(self, name: str, value: int) -> None:
        """Refuse to go on when ranks disagree, before a collective can hang.

        Raises:
            SyncError: the value differs; names the value of each rank.
        """
        if self.num_ranks == 1:
            return
        values = self.accelerator.gather(torch.tensor([value], device=self.device))
        assert isinstance(values, Tensor)
        if len(set(values.tolist())) > 1:
            by_rank = dict(enumerate(values.tolist()))
            raise SyncError(f"{name} differs by rank: {by_rank}")

    def synchronize(self) -> None:
        """Wait for the device, so that a clock measures work and not its start."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_memory_gib(self) -> float:
        """Peak of the GPU's allocated memory, or of the process's resident memory on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

    def save_state(self, folder: Path) -> None:
        """Optimizer, schedule and torch's random state, as tensors and plain values."""
        state = {
            "optimizer": self.optimizer.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        torch.save(state, folder / "trainer.pt")

    def load_state(self, folder: Path) -> None:
        """Take up what `save_state` wrote; nothing but tensors and plain values is read."""
        try:
            state = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
            self.optimizer.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{folder}/trainer.pt does not load: {reason}") from None
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["torch_rng"])
