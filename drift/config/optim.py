"""Settings of the optimizer. Imports no torch."""

from dataclasses import dataclass
from enum import StrEnum

from omegaconf import MISSING

from drift.config.bounds import not_negative, positive, share
from drift.config.registry import Registry


class Schedule(StrEnum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass
class OptimConfig:
    lr: float = positive(MISSING, finite=True)  # learning rate
    beta1: float = share(0.9, one=False)  # of AdamW's mean of gradients
    beta2: float = share(0.999, one=False)  # of its mean of their squares
    eps: float = positive(1e-8, finite=True)  # in AdamW's denominator
    weight_decay: float = not_negative(0.0, finite=True)  # AdamW's, decoupled from the gradient
    max_grad_norm: float = positive(1.0, finite=True)  # longer gradients are shortened to it
    schedule: Schedule = Schedule.constant  # of the learning rate, after the warm-up
    warmup_steps: int = not_negative(0)  # optimizer steps
    # of one learner forward on one rank, padding included; at least one row; lower saves memory
    tokens_per_forward: int = positive(2048)


OPTIMS = Registry("optim", {"base": OptimConfig})
