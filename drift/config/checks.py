"""Checks of a composed config, across groups. Each message: what is set, why not, what to set."""

from collections.abc import Iterator
from dataclasses import fields

from drift.common.errors import ConfigError
from drift.config.bounds import out_of_range
from drift.config.cluster import ClusterConfig, SlurmConfig, SubmititConfig
from drift.config.commands import (
    BaseConfig,
    EvalRunConfig,
    LabConfig,
    RunConfig,
    ScoreConfig,
    SFTConfig,
)
from drift.config.masking import (
    MASKINGS,
    AllConfig,
    BlockConfig,
    CoupledConfig,
    CoupledRatioConfig,
    ElboConfig,
    MaskingConfig,
    QuadratureConfig,
    RandomConfig,
    ReplayConfig,
    SequentialConfig,
    Times,
    TraceConfig,
)
from drift.config.model import FAMILY_NAMES, AttentionBackend
from drift.config.objective import (
    OBJECTIVES,
    AdvantageEstimator,
    BoundaryConfig,
    ClippedConfig,
    DualClippedConfig,
    Importance,
    KLEstimator,
    KLReduction,
    KLReference,
    Level,
    Normalization,
    ObjectiveConfig,
    RewardControl,
    SandwichConfig,
    SelfNormalizedConfig,
    ValueConfig,
)
from drift.config.rollout import (
    CONFIDENCE_NAMES,
    ROLLOUTS,
    CacheMode,
    ConfidenceFrom,
    RolloutConfig,
    RolloutWeights,
    StaticConfig,
)
from drift.config.task import EndSuppression, Truncated, offline_problems, task_problems


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
    if reason := FAMILY_NAMES.refused(config.model.family):
        yield reason
    lora = config.model.lora
    if lora.rank and not lora.targets:
        yield f"model.lora.targets=[] trains nothing with model.lora.rank={lora.rank}; name a layer"
    yield from _rollout(config.rollout, network=bool(config.model.block_length))
    yield from _rollout_with_others(config)
    yield from task_problems(config.task)
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


def _rollout(rollout: RolloutConfig, *, network: bool = False) -> Iterator[str]:
    """network: the block length is the network's, and no choice."""
    if min(rollout.gen_length, rollout.block_length, rollout.steps) <= 0:
        return
    if rollout.gen_length % rollout.block_length:
        longer = -(-rollout.gen_length // rollout.block_length) * rollout.block_length
        choice = "" if network else f"block_length in {divisors(rollout.gen_length)} or "
        yield (
            f"rollout.gen_length={rollout.gen_length} is not a multiple of "
            f"rollout.block_length={rollout.block_length}; use {choice}gen_length={longer}"
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
    if reason := CONFIDENCE_NAMES.refused(rollout.confidence):
        yield reason
        return
    if rollout.confidence == "random" and rollout.confidence_from != ConfidenceFrom.network:
        yield (
            f"rollout.confidence_from={rollout.confidence_from} does not apply to "
            "rollout.confidence=random, which draws the order; leave it network"
        )
    if isinstance(rollout, StaticConfig):
        return
    confidence, rule = rollout.confidence, f"rollout={ROLLOUTS.name(rollout)}"
    if confidence not in ("probability", "margin"):
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
    cached = rollout.cache in (CacheMode.prefix, CacheMode.dual)
    prefix = rollout.cache == CacheMode.prefix
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


# whose views are the steps of the trace in order, each token scored in one of them
STEPS = (TraceConfig, ReplayConfig)
# whose views show the sampler's own states
STATES = (SequentialConfig, ReplayConfig)
# whose views hide a token at several t, with 1/t weights
TIMES = (ElboConfig, QuadratureConfig, BlockConfig)
# whose views have weights
WEIGHTED = (*TIMES, CoupledRatioConfig)
# the most usual ones of those whose views have none
UNWEIGHTED = (SequentialConfig, TraceConfig)
# whose views score some tokens more often than others
UNEVEN = (SequentialConfig, RandomConfig, BlockConfig)
# each of whose views estimates the whole row's log-likelihood
WHOLE = (ElboConfig, RandomConfig, AllConfig)


def choices(kinds: tuple[type[MaskingConfig], ...]) -> str:
    """`masking=elbo, quadrature or block`"""
    *first, last = map(MASKINGS.name_of, kinds)
    return f"masking={', '.join(first)} or {last}"


def masking_problems(config: RunConfig) -> Iterator[str]:
    """What cannot work in the masking."""
    masking = config.masking
    if isinstance(masking, CoupledConfig) and masking.num_views % 2:
        yield (
            f"masking.num_views={masking.num_views} must be even for masking=coupled: "
            "a view and its complement"
        )
    if isinstance(masking, AllConfig) and masking.num_views != 1 and not masking.prompt_mask_prob:
        yield (
            f"masking.num_views={masking.num_views} must be 1 for masking=all: "
            "everything is hidden in every view; only masking.prompt_mask_prob makes views differ"
        )
    if isinstance(masking, CoupledRatioConfig):
        yield from _coupled_ratio(masking)
    if (
        isinstance(masking, ElboConfig)
        and masking.times == Times.antithetic
        and masking.num_views % 2
    ):
        yield (
            f"masking.num_views={masking.num_views} must be even for "
            "masking.times=antithetic: a view and its complement"
        )
    if isinstance(masking, ElboConfig) and masking.least_count == 1:
        if not masking.exact_count:
            yield (
                "masking.least_count=1 applies to masking.exact_count=true only; set "
                "masking.exact_count=true or masking.least_count=0"
            )
        if masking.times == Times.antithetic:
            yield (
                "masking.least_count=1 does not go with masking.times=antithetic, where a "
                "complement can be empty; use stratified or independent, or least_count=0"
            )
    if isinstance(masking, BlockConfig) and config.rollout.gen_length % masking.block_length:
        yield (
            f"masking.block_length={masking.block_length} must divide "
            f"rollout.gen_length={config.rollout.gen_length}"
        )


def _coupled_ratio(masking: CoupledRatioConfig) -> Iterator[str]:
    if masking.num_views % 3:
        yield (
            f"masking.num_views={masking.num_views} must be a multiple of 3 for "
            "masking=coupled_ratio: everything hidden, a part, the rest"
        )
    if masking.min_ratio > masking.max_ratio:
        yield (
            f"masking.min_ratio={masking.min_ratio} and masking.max_ratio={masking.max_ratio} "
            "must satisfy min_ratio <= max_ratio"
        )


def objective_problems(config: RunConfig) -> Iterator[str]:
    """What cannot work in the objective, alone or with the masking and the rollout."""
    objective = config.objective
    if config.rollout.group_size < 2:
        yield (
            f"rollout.group_size={config.rollout.group_size} leaves nothing to compare a "
            "completion with; use 2 or more"
        )
    if not objective.has_ratio and objective.num_updates > 1:
        yield (
            f"objective.num_updates={objective.num_updates} needs a ratio to the old policy, which "
            f"objective={OBJECTIVES.name(objective)} does not have; "
            "use objective=ppo_clip or objective.num_updates=1"
        )
    if objective.num_minibatches > 1:
        yield from _minibatches(config)
    cap = objective.importance_cap
    if objective.importance != Importance.none:
        yield from _importance(config)
    elif cap != ObjectiveConfig().importance_cap:
        yield (
            f"objective.importance_cap={cap} does not apply; "
            "remove it or set objective.importance=truncated"
        )
    if config.rollout.temperature == 0:
        yield (
            "rollout.temperature=0 makes every completion of a group the same; "
            "use a value above 0, for example 1"
        )
    yield from _level(config)
    yield from _by_view(config)
    yield from _reference(config)
    yield from _views(config)
    yield from _value(config)


def idle_settings(config: RunConfig | SFTConfig) -> Iterator[str]:
    """What changes nothing beside other settings, and is no mistake on one side of a sweep."""
    num_updates = config.num_steps
    if isinstance(config, RunConfig):
        objective, default = config.objective, ObjectiveConfig()
        num_updates *= objective.num_steps
        if config.masking.redraw and objective.num_updates == 1:
            yield "masking.redraw=true changes nothing at objective.num_updates=1"
        if objective.num_steps == 1:
            yield from _idle_in_one_step(objective)
        by_view = objective.normalization in (Normalization.view, Normalization.view_token)
        if by_view and isinstance(config.masking, WEIGHTED):
            yield (
                f"objective.normalization={objective.normalization} is the same as sample with "
                f"masking={MASKINGS.name(config.masking)}, whose views have weights"
            )
        for key in ("kl_estimator", "kl_reduction", "kl_reference"):
            value = setting(objective, key)
            if objective.kl_coef == 0 and value != setting(default, key):
                yield f"objective.{key}={value} changes nothing at objective.kl_coef=0"
    if config.optim.warmup_steps >= num_updates:
        yield (
            f"optim.warmup_steps={config.optim.warmup_steps}: the run ends within the warm-up, "
            f"after {num_updates} optimizer steps, and never reaches optim.lr={config.optim.lr}"
        )


def _idle_in_one_step(objective: ObjectiveConfig) -> Iterator[str]:
    """What has no effect where the policy is still the one before the rollout's updates."""
    if objective.kl_coef != 0 and objective.kl_reference == KLReference.before:
        step = "with kl_reference=before and one optimizer step per rollout"
        use = "use num_updates or num_minibatches above 1, or kl_reference=start"
        if objective.kl_estimator == KLEstimator.k1:
            yield (
                f"objective.kl_coef={objective.kl_coef} only adds noise: {step} the KL is 0 and "
                f"the gradient of kl_estimator=k1 is that of log p, 0 on average; {use}"
            )
        else:
            yield (
                f"objective.kl_coef={objective.kl_coef} has no effect: {step} the KL and its "
                f"gradient are 0; {use}"
            )
    default = DualClippedConfig()
    if isinstance(objective, ClippedConfig):
        clips = (objective.clip_low, objective.clip_high)
        if clips != (default.clip_low, default.clip_high):
            yield (
                f"objective.clip_low={clips[0]} and clip_high={clips[1]} change nothing at "
                "objective.num_updates=1: the only update begins where the ratio is 1"
            )
    if isinstance(objective, DualClippedConfig) and objective.clip_dual is not None:
        yield (
            f"objective.clip_dual={objective.clip_dual} changes nothing at "
            "objective.num_updates=1: the only update begins where the ratio is 1"
        )


def curriculum_problems(config: RunConfig) -> Iterator[str]:
    """What cannot work in the choice of prompts."""
    settings, control = config.curriculum, config.objective.reward_control
    if control == RewardControl.shuffle and settings.max_rounds > 1:
        yield (
            f"curriculum.max_rounds={settings.max_rounds} keeps groups by their own rewards, which "
            "objective.reward_control=shuffle mixes; use curriculum.max_rounds=1"
        )


def _importance(config: RunConfig) -> Iterator[str]:
    objective, masking = config.objective, config.masking
    if not isinstance(masking, STATES):
        yield (
            f"objective.importance={objective.importance} compares sampler and learner in the "
            f"sampler's own states, which masking={MASKINGS.name(masking)} does not score; use "
            "masking=sequential or replay, or importance=none"
        )
    if config.masking.prompt_mask_prob > 0:
        yield (
            f"objective.importance={objective.importance} needs the sampler's own states, which "
            f"masking.prompt_mask_prob={config.masking.prompt_mask_prob} changes; set it to 0"
        )
    if objective.level != Level.view:
        yield (
            f"objective.importance={objective.importance} weighs each token in its view, which "
            f"objective.level={objective.level} adds up; use level=view or importance=none"
        )


def _level(config: RunConfig) -> Iterator[str]:
    objective, masking = config.objective, config.masking
    if objective.level not in objective.levels:
        yield (
            f"objective.level={objective.level} does not go with "
            f"objective={OBJECTIVES.name(objective)}; use level={' or '.join(objective.levels)}"
        )
    if objective.level == Level.token and isinstance(masking, UNEVEN):
        yield (
            f"objective.level=token adds up a token's views, but masking={MASKINGS.name(masking)} "
            "scores some tokens more often than others; use level=view or sequence, or another "
            "masking"
        )
    exploding = objective.kl_coef != 0 and objective.kl_estimator == KLEstimator.k3
    if objective.level == Level.sequence and exploding:
        yield (
            "objective.kl_estimator=k3 is the exponential of a whole completion's log-ratio at "
            "objective.level=sequence; use k2"
        )
    if (
        isinstance(objective, SelfNormalizedConfig)
        and objective.normalization != Normalization.sample
    ):
        yield (
            f"objective.normalization={objective.normalization} does not apply to "
            "objective=self_normalized, which normalizes each group itself; use sample"
        )


def _by_view(config: RunConfig) -> Iterator[str]:
    """What counts views apart."""
    objective, masking = config.objective, config.masking
    by_view = objective.normalization in (Normalization.view, Normalization.view_token)
    if by_view and objective.level != Level.view:
        yield (
            f"objective.normalization={objective.normalization} counts views apart, which "
            f"objective.level={objective.level} adds up; use normalization=sample or level=view"
        )
    alone = objective.normalization == Normalization.view and not isinstance(masking, WEIGHTED)
    if objective.kl_reduction == KLReduction.sum and not alone:
        yield (
            "objective.kl_reduction=sum adds up the KL of a view; use "
            "objective.normalization=view and a masking whose views have no weights, or "
            "kl_reduction=mean"
        )


def _minibatches(config: RunConfig) -> Iterator[str]:
    """What keeps the views of a completion together, or allows one optimizer step only."""
    objective, masking = config.objective, config.masking
    reasons: list[str] = []
    use: list[str] = []
    if not objective.has_ratio:
        name = OBJECTIVES.name(objective)
        reasons.append(f"needs a ratio to the old policy, which objective={name} does not have")
    if not objective.has_ratio or Level.view not in objective.levels:
        use.append("objective=ppo_clip")
    if objective.level != Level.view and not use:
        use.append("objective.level=view")
    if objective.normalization != Normalization.view:
        use.append("objective.normalization=view")
    if isinstance(masking, WEIGHTED):
        use.append(f"a masking whose views have no weights ({choices(UNWEIGHTED)})")
    if set(use) - {"objective=ppo_clip"} or Level.view not in objective.levels:
        reasons.append("cuts the views of a completion apart")
    if reasons:
        *others, last = use
        settings = f"{', '.join(others)} and {last}" if others else last
        yield (
            f"objective.num_minibatches={objective.num_minibatches} {', and '.join(reasons)}; "
            f"use {settings}, or objective.num_minibatches=1"
        )


def _reference(config: RunConfig) -> Iterator[str]:
    """What the KL is to."""
    objective, default = config.objective, ObjectiveConfig()
    if objective.kl_reference == KLReference.follow:
        if config.model.lora.rank:
            yield (
                "objective.kl_reference=follow needs a reference of its own, but with "
                f"model.lora.rank={config.model.lora.rank} the reference is the adapter's base; "
                "use start or before"
            )
        if objective.has_reference and objective.follow_every < objective.num_steps:
            yield (
                f"objective.follow_every={objective.follow_every} is below the "
                f"{objective.num_steps} optimizer steps of a rollout (num_updates * "
                "num_minibatches), after which the reference can move once; use "
                f"objective.follow_every={objective.num_steps} or more"
            )
        return
    for key in ("follow_every", "follow_share"):
        if setting(objective, key) != setting(default, key):
            yield (
                f"objective.{key}={setting(objective, key)} applies to "
                "objective.kl_reference=follow only; remove it or set kl_reference=follow"
            )


def _views(config: RunConfig) -> Iterator[str]:
    objective, masking = config.objective, config.masking
    name = MASKINGS.name(masking)
    if isinstance(objective, SandwichConfig) and not isinstance(masking, TIMES):
        yield (
            "objective=sandwich bounds the likelihood by views at several t, which "
            f"masking={name} has not; use {choices(TIMES)}"
        )
    if isinstance(objective, BoundaryConfig) and not isinstance(masking, WHOLE):
        yield (
            "objective=boundary needs views that each estimate the whole likelihood, which those "
            f"of masking={name} do not; use {choices(WHOLE)}"
        )


def _value(config: RunConfig) -> Iterator[str]:
    objective, masking = config.objective, config.masking
    if objective.advantage != AdvantageEstimator.gae:
        default = ValueConfig()
        for key, value in vars(objective.value).items():
            if value != vars(default)[key]:
                yield (
                    f"objective.value.{key}={value} applies to objective.advantage=gae only; "
                    "remove it or set advantage=gae"
                )
        return
    if not isinstance(masking, STEPS):
        yield (
            "objective.advantage=gae has a value for each step of the trace, which the views of "
            f"masking={MASKINGS.name(masking)} are not; use {choices(STEPS)}"
        )
    if objective.level != Level.view:
        yield (
            "objective.advantage=gae gives every token an advantage of its own, which "
            f"objective.level={objective.level} cannot take; use level=view"
        )


def validate(config: object) -> None:
    """Refuse a config that cannot work.

    Raises:
        ConfigError: one line with every problem found.
    """
    found: list[str] = []
    if isinstance(config, BaseConfig):
        found = list(problems(config))
    elif isinstance(config, ScoreConfig):
        found = [*out_of_range(config), *offline_problems(config.task)]
    elif isinstance(config, LabConfig):
        found = [*out_of_range(config), *_rollout(config.rollout)]
    if found:
        raise ConfigError("; ".join(found))
