"""Checks of a composed config, across groups. Each message: what is set, why not, what to set."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from math import isfinite
from typing import Any

from drift.config import (
    AllConfig,
    BaseConfig,
    CountdownConfig,
    CoupledConfig,
    PolicyLoss,
    RandomConfig,
    RemaskingRule,
    RunConfig,
    SandboxConfig,
    SequentialConfig,
    SFTConfig,
    SudokuConfig,
)
from drift.errors import ConfigError

MIN_MEMORY_MB = 128
POSITIVE = (
    "rollout.prompts_per_step",
    "rollout.gen_length",
    "rollout.block_length",
    "rollout.steps",
    "rollout.max_rows",
    "rollout.group_size",
    "optim.lr",
    "optim.max_grad_norm",
    "optim.eps",
    "optim.rows_per_forward",
    "masking.num_views",
    "objective.num_updates",
    "sft.batch_size",
    "sft.log_every",
    "task.train_size",
    "task.validation_size",
    "task.test_size",
    "task.max_number",
    "task.max_target",
    "task.workers",
    "task.time_limit",
    "cluster.threads",
    "eval.max_examples",
    "checkpoint.keep",
    "num_steps",
)
NOT_NEGATIVE = (
    "rollout.temperature",
    "objective.clip_low",
    "objective.clip_high",
    "objective.kl_coef",
    "objective.entropy_coef",
    "optim.weight_decay",
    "optim.warmup_steps",
    "masking.temperature",
    "eval.every",
    "checkpoint.every",
)
FINITE = (
    "optim.lr",
    "optim.beta1",
    "optim.beta2",
    "optim.eps",
    "optim.weight_decay",
    "optim.max_grad_norm",
    "rollout.temperature",
    "objective.clip_low",
    "objective.clip_high",
    "objective.kl_coef",
    "objective.entropy_coef",
    "task.time_limit",
)


RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (POSITIVE, lambda value: not value <= 0, "greater than 0"),
    (NOT_NEGATIVE, lambda value: not value < 0, "0 or more"),
    (FINITE, isfinite, "a finite number"),
    (("optim.beta1", "optim.beta2"), lambda value: 0 <= value < 1, "from 0 to below 1"),
)


def setting(config: object, key: str) -> object:
    """The value of `group.field`; None where the chosen option has no such field."""
    for part in key.split("."):
        if part not in {field.name for field in fields(config)}:  # pyright: ignore[reportArgumentType]
            return None
        config = getattr(config, part)
    return config


def divisors(number: int) -> str:
    return "{" + ", ".join(str(d) for d in range(1, number + 1) if number % d == 0) + "}"


def problems(config: BaseConfig) -> Iterator[str]:
    """Every reason why a config cannot work."""
    for keys, allowed, words in RANGES:
        for key in keys:
            value = setting(config, key)
            if value is not None and not allowed(value):
                yield f"{key}={value} must be {words}"
    yield from _rollout(config)
    yield from _task(config)
    if isinstance(config, RunConfig):
        yield from _masking(config)
        yield from _objective(config)
    if isinstance(config, SFTConfig) and not 0 <= config.sft.habit_share <= 1:
        yield f"sft.habit_share={config.sft.habit_share} must be within 0 and 1"


def _rollout(config: BaseConfig) -> Iterator[str]:
    rollout = config.rollout
    if min(rollout.gen_length, rollout.block_length, rollout.steps) <= 0:
        return
    if rollout.gen_length % rollout.block_length:
        longer = -(-rollout.gen_length // rollout.block_length) * rollout.block_length
        yield (
            f"rollout.gen_length={rollout.gen_length} is not a multiple of "
            f"rollout.block_length={rollout.block_length}; use block_length in "
            f"{divisors(rollout.gen_length)} or gen_length={longer}"
        )
        return
    num_blocks = rollout.gen_length // rollout.block_length
    if rollout.steps % num_blocks or not num_blocks <= rollout.steps <= rollout.gen_length:
        yield (
            f"rollout.steps={rollout.steps} must be a multiple of the {num_blocks} blocks "
            f"(gen_length / block_length), from {num_blocks} to {rollout.gen_length}"
        )
    if rollout.remasking == RemaskingRule.threshold:
        if rollout.threshold is None or not 0 < rollout.threshold <= 1:
            yield (
                f"rollout.threshold={rollout.threshold} must be within 0 (excluded) and 1 "
                "for remasking=threshold"
            )
    elif rollout.threshold is not None:
        yield (
            f"rollout.threshold={rollout.threshold} does not apply to "
            f"rollout.remasking={rollout.remasking}; remove it or set remasking=threshold"
        )


def _task(config: BaseConfig) -> Iterator[str]:
    task = config.task
    if isinstance(task, CountdownConfig):
        if not task.operators or set(task.operators) - set("+-*"):
            yield f"task.operators={task.operators!r} must be one or more of + - *"
        if not 2 <= task.num_numbers <= 6:
            yield f"task.num_numbers={task.num_numbers} must be from 2 to 6"
    if isinstance(task, SandboxConfig) and task.memory_mb < MIN_MEMORY_MB:
        yield (
            f"task.memory_mb={task.memory_mb} must be {MIN_MEMORY_MB} or more: "
            "the interpreter alone takes some"
        )
    if isinstance(task, SudokuConfig) and not 1 <= task.min_empty <= task.max_empty <= 12:
        yield (
            f"task.min_empty={task.min_empty} and task.max_empty={task.max_empty} must "
            "satisfy 1 <= min_empty <= max_empty <= 12"
        )


def _masking(config: RunConfig) -> Iterator[str]:
    masking = config.masking
    if isinstance(masking, SequentialConfig) and not 0 <= masking.low_prob_threshold <= 1:
        yield f"masking.low_prob_threshold={masking.low_prob_threshold} must be within 0 and 1"
    if isinstance(masking, RandomConfig) and not 0 < masking.ratio <= 1:
        yield f"masking.ratio={masking.ratio} must be within 0 (excluded) and 1"
    if isinstance(masking, CoupledConfig) and masking.num_views % 2:
        yield (
            f"masking.num_views={masking.num_views} must be even for masking=coupled: "
            "a view and its complement"
        )
    if isinstance(masking, AllConfig) and masking.num_views != 1:
        yield (
            f"masking.num_views={masking.num_views} must be 1 for masking=all: "
            "everything is hidden in every view"
        )


def _objective(config: RunConfig) -> Iterator[str]:
    objective = config.objective
    if config.rollout.group_size < 2:
        yield (
            f"rollout.group_size={config.rollout.group_size} leaves nothing to compare a "
            "completion with; use 2 or more"
        )
    if objective.policy_loss == PolicyLoss.reinforce and objective.num_updates > 1:
        yield (
            f"objective.num_updates={objective.num_updates} needs a ratio to the old policy; "
            "set objective.policy_loss=ppo_clip or num_updates=1"
        )
    if objective.clip_low >= 1:
        yield f"objective.clip_low={objective.clip_low} must be below 1: the ratio is positive"
    if config.rollout.temperature == 0:
        yield (
            "rollout.temperature=0 makes every completion of a group the same; "
            "use a value above 0, for example 1"
        )


def validate(config: object) -> None:
    """Refuse a config that cannot work.

    Raises:
        ConfigError: one line with every problem found.
    """
    found = list(problems(config)) if isinstance(config, BaseConfig) else []
    if found:
        raise ConfigError("; ".join(found))
