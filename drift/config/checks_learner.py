"""Checks of masking and objective: parts that contradict each other are refused. No torch."""

from collections.abc import Iterator

from drift.config.commands import RunConfig, SFTConfig
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
from drift.config.objective import (
    OBJECTIVES,
    AdvantageEstimator,
    BoundaryConfig,
    ClippedConfig,
    Importance,
    KLEstimator,
    Level,
    Normalization,
    ObjectiveConfig,
    RewardControl,
    SandwichConfig,
    SelfNormalizedConfig,
    ValueConfig,
)

# whose views are the steps of the trace in order, each token scored in one of them
STEPS = (TraceConfig, ReplayConfig)
# whose views show the sampler's own states
STATES = (SequentialConfig, ReplayConfig)
# whose views hide a token at several t, with 1/t weights
TIMES = (ElboConfig, QuadratureConfig, BlockConfig)
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
            f"objective={OBJECTIVES.name(objective)} has not; "
            "use objective=ppo_clip or objective.num_updates=1"
        )
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
    yield from _views(config)
    yield from _value(config)


def idle_settings(config: RunConfig | SFTConfig) -> Iterator[str]:
    """What changes nothing beside other settings, and is no mistake on one side of a sweep."""
    num_updates = config.num_steps
    if isinstance(config, RunConfig):
        objective, default = config.objective, ClippedConfig()
        num_updates *= objective.num_updates
        if isinstance(objective, ClippedConfig) and objective.num_updates == 1:
            clips = (objective.clip_low, objective.clip_high)
            if clips != (default.clip_low, default.clip_high):
                yield (
                    f"objective.clip_low={clips[0]} and clip_high={clips[1]} change nothing at "
                    "objective.num_updates=1: the only update begins where the ratio is 1"
                )
        if objective.kl_coef == 0 and objective.kl_estimator != default.kl_estimator:
            yield (
                f"objective.kl_estimator={objective.kl_estimator} changes nothing at "
                "objective.kl_coef=0"
            )
    if config.optim.warmup_steps >= num_updates:
        yield (
            f"optim.warmup_steps={config.optim.warmup_steps}: the run ends within the warm-up, "
            f"after {num_updates} optimizer steps, and never reaches optim.lr={config.optim.lr}"
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
