"""Checks of a composed config, across groups. Each message: what is set, why not, what to set."""

from collections.abc import Iterator

from drift.config import (
    AllConfig,
    BaseConfig,
    CoupledConfig,
    PolicyLoss,
    RandomConfig,
    RemaskingRule,
    RunConfig,
    SequentialConfig,
    SFTConfig,
)
from drift.errors import ConfigError

POSITIVE = (
    "rollout.prompts_per_step",
    "rollout.gen_length",
    "rollout.block_length",
    "rollout.steps",
    "rollout.max_rows",
    "rollout.group_size",
    "optim.lr",
    "optim.max_grad_norm",
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
    "cluster.threads",
    "eval.max_examples",
    "checkpoint.keep",
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
    "num_steps",
)


def setting(config: object, key: str) -> object:
    """The value of `group.field`; None where the chosen option has no such field."""
    value: object = config
    for part in key.split("."):
        value = vars(value).get(part) if value is not None else None
    return value


def divisors(number: int) -> str:
    return "{" + ", ".join(str(d) for d in range(1, number + 1) if number % d == 0) + "}"


def problems(config: BaseConfig) -> Iterator[str]:
    """Every reason why a config cannot work."""
    for key in POSITIVE:
        value = setting(config, key)
        if value is not None and value <= 0:  # pyright: ignore[reportOperatorIssue]
            yield f"{key}={value} must be greater than 0"
    for key in NOT_NEGATIVE:
        value = setting(config, key)
        if value is not None and value < 0:  # pyright: ignore[reportOperatorIssue]
            yield f"{key}={value} must be 0 or more"
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
    task = vars(config.task)
    operators = task.get("operators")
    if operators is not None and (not operators or set(operators) - set("+-*")):
        yield f"task.operators={operators!r} must be one or more of + - *"
    if "num_numbers" in task and not 2 <= task["num_numbers"] <= 6:
        yield f"task.num_numbers={task['num_numbers']} must be from 2 to 6"
    if "min_empty" in task and not 1 <= task["min_empty"] <= task["max_empty"] <= 12:
        yield (
            f"task.min_empty={task['min_empty']} and task.max_empty={task['max_empty']} must "
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


def validate(config: BaseConfig) -> None:
    """Refuse a config that cannot work.

    Raises:
        ConfigError: one line with every problem found.
    """
    found = list(problems(config))
    if found:
        raise ConfigError("; ".join(found))
