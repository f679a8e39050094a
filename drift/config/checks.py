"""Checks of a composed config, across groups. Each message: what is set, why not, what to set."""

from collections.abc import Iterator
from dataclasses import fields

from drift.common.errors import ConfigError
from drift.config.bounds import out_of_range
from drift.config.checks_learner import curriculum_problems, masking_problems, objective_problems
from drift.config.cluster import ClusterConfig, SlurmConfig, SubmititConfig
from drift.config.commands import BaseConfig, EvalRunConfig, LabConfig, RunConfig, ScoreConfig
from drift.config.model import AttentionBackend
from drift.config.rollout import (
    ROLLOUTS,
    CacheMode,
    Confidence,
    RolloutConfig,
    RolloutWeights,
    StaticConfig,
)
from drift.config.task import (
    CountdownConfig,
    EndSuppression,
    RewardConfig,
    SudokuConfig,
    TaskConfig,
    Truncated,
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
    yield from out_of_range(config)
    lora = config.model.lora
    if lora.rank and not lora.targets:
        yield f"model.lora.targets=[] trains nothing with model.lora.rank={lora.rank}; name a layer"
    yield from _rollout(config.rollout)
    yield from _rollout_with_others(config)
    yield from _task(config.task)
    yield from _cluster(config.cluster)
    if isinstance(config.cluster, SubmititConfig):
        yield from _submitit(config.cluster)
    if isinstance(config, RunConfig):
        yield from masking_problems(config)
        yield from objective_problems(config)
        yield from curriculum_problems(config)
        yield from _ranks(config)
    if isinstance(config, EvalRunConfig):
        yield from _samples(config)


def _rollout(rollout: RolloutConfig) -> Iterator[str]:
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
    yield from _remasking(rollout)
    yield from _cache(rollout)


def _only_with(rollout: RolloutConfig, key: str, applies: bool, where: str) -> Iterator[str]:
    value = setting(rollout, key)
    if value is not None and not applies:
        yield f"rollout.{key}={value} applies to {where} only; remove it or set {where}"


def _remasking(rollout: RolloutConfig) -> Iterator[str]:
    if isinstance(rollout, StaticConfig):
        return
    confidence, rule = rollout.confidence, f"rollout={ROLLOUTS.name(rollout)}"
    if confidence not in (Confidence.probability, Confidence.margin):
        yield (
            f"rollout.confidence={confidence} is no number from 0 to 1, which {rule} compares; "
            "use probability or margin, or rollout=static"
        )
    if rollout.position_temperature > 0:
        yield (
            f"rollout.position_temperature={rollout.position_temperature} draws an order, which "
            f"{rule} does not use; set it to 0 or rollout=static"
        )


def _cache(rollout: RolloutConfig) -> Iterator[str]:
    cached, prefix = rollout.cache != CacheMode.none, rollout.cache == CacheMode.prefix
    yield from _only_with(rollout, "horizon", prefix, "rollout.cache=prefix")
    yield from _only_with(rollout, "refresh_every", cached, "rollout.cache=prefix or dual")
    if rollout.compile and not cached:
        yield "rollout.compile=true applies to rollout.cache=prefix or dual only"


def _rollout_with_others(config: BaseConfig) -> Iterator[str]:
    rollout, reward = config.rollout, config.task.reward
    if rollout.compile and config.model.attention == AttentionBackend.flash_attention_2:
        yield "rollout.compile=true does not work with model.attention=flash_attention_2; use sdpa"
    if reward.truncated == Truncated.zero and rollout.suppress_end == EndSuppression.token:
        yield (
            "task.reward.truncated=zero: with rollout.suppress_end=token no completion ends, and "
            "none would be rewarded; use keep"
        )


def _task(task: TaskConfig) -> Iterator[str]:
    if isinstance(task, CountdownConfig) and (
        not task.operators or set(task.operators) - set("+-*")
    ):
        yield f"task.operators={task.operators!r} must be one or more of + - *"
    if task.reward.cells and not isinstance(task, SudokuConfig):
        yield f"task.reward.cells={task.reward.cells} does not apply to task={task.name}"
    if task.reward.nfe_penalty > 0 and task.reward.nfe_penalty >= task.reward.answer:
        yield (
            f"task.reward.nfe_penalty={task.reward.nfe_penalty} must be below "
            f"task.reward.answer={task.reward.answer}: a right answer, however slow, must be worth "
            "more than a wrong one"
        )
    if isinstance(task, SudokuConfig) and task.min_empty > task.max_empty:
        yield (
            f"task.min_empty={task.min_empty} and task.max_empty={task.max_empty} must "
            "satisfy min_empty <= max_empty"
        )


def _offline(reward: RewardConfig) -> Iterator[str]:
    default = vars(RewardConfig())
    for key in ("length_penalty", "nfe_penalty", "truncated"):
        if (value := vars(reward)[key]) != default[key]:
            yield (
                f"task.reward.{key}={value} is for completions that are sampled; offline grading "
                f"knows no length, network evaluations or end of them: leave it {default[key]}"
            )


def _submitit(cluster: SubmititConfig) -> Iterator[str]:
    limit_s = cluster.time_limit_min * 60
    if isinstance(cluster, SlurmConfig):
        if cluster.num_processes is None:
            yield "cluster.num_processes=null: SLURM needs the number of processes on a machine"
        if cluster.signal_delay_s >= limit_s:
            yield (
                f"cluster.signal_delay_s={cluster.signal_delay_s} must be below the time limit of "
                f"{limit_s} s (cluster.time_limit_min={cluster.time_limit_min})"
            )
    elif cluster.num_machines != 1:
        yield f"cluster.num_machines={cluster.num_machines} must be 1 for {cluster.name}"
    gpus, processes = cluster.gpus_per_node, cluster.num_processes
    if None not in (gpus, processes) and gpus != processes:
        yield (
            f"cluster.gpus_per_node={gpus} and cluster.num_processes={processes} must be equal: "
            "each process drives one GPU"
        )


def _cluster(cluster: ClusterConfig) -> Iterator[str]:
    stage = cluster.zero_stage
    if cluster.machine_rank >= cluster.num_machines:
        yield (
            f"cluster.machine_rank={cluster.machine_rank} must be below "
            f"cluster.num_machines={cluster.num_machines}: the first machine is 0"
        )
    for key, least in (("offload_optimizer", 1), ("offload_parameters", 3), ("deepspeed", 1)):
        value = setting(cluster, key)
        if value and (stage is not None and stage < least):
            yield f"cluster.{key}={value} needs cluster.zero_stage={least} or more, not {stage}"


def _samples(config: EvalRunConfig) -> Iterator[str]:
    if config.eval.samples > 1 and config.rollout.temperature == 0:
        yield (
            f"eval.samples={config.eval.samples} at rollout.temperature=0 are one completion "
            "again and again; set rollout.temperature above 0, for example 1, or eval.samples=1"
        )


def refused_weights(weights: RolloutWeights, split: bool) -> str | None:
    """Why these weights cannot decode; split: ZeRO-3 splits the trained ones."""
    if weights == RolloutWeights.shared and split:
        return "rollout.weights=shared, but ZeRO-3 splits the weights; use replica or gather"
    if weights == RolloutWeights.gather and not split:
        return "rollout.weights=gather is for cluster.zero_stage=3; use shared"
    return None


def refused_share(what: str, count: int, ranks: int) -> str | None:
    """Why ranks cannot have equal parts of something."""
    if not count % ranks:
        return None
    return f"{what}={count} cannot be shared by {ranks} ranks alike; use a multiple of {ranks}"


def _ranks(config: RunConfig) -> Iterator[str]:
    """What can be said before the processes are there."""
    cluster, prompts = config.cluster, config.rollout.prompts_per_step
    ranks = (cluster.num_processes or 1) * cluster.num_machines
    weights, stage = config.rollout.weights, cluster.zero_stage
    if stage is not None and (reason := refused_weights(weights, stage == 3)):
        yield reason
    if weights == RolloutWeights.gather and config.rollout.compile:
        yield (
            "rollout.compile=true needs all weights at once, rollout.weights=gather holds one "
            "block at a time; use replica"
        )
    if cluster.num_processes and (odd := refused_share("rollout.prompts_per_step", prompts, ranks)):
        yield odd


def validate(config: object) -> None:
    """Refuse a config that cannot work.

    Raises:
        ConfigError: one line with every problem found.
    """
    found: list[str] = []
    if isinstance(config, BaseConfig):
        found = list(problems(config))
    elif isinstance(config, ScoreConfig):
        found = [*out_of_range(config), *_task(config.task), *_offline(config.task.reward)]
    elif isinstance(config, LabConfig):
        found = [*out_of_range(config), *_rollout(config.rollout)]
    if found:
        raise ConfigError("; ".join(found))
