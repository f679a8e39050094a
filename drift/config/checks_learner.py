"""Checks of masking and objective: parts that contradict each other are refused. No torch."""

from collections.abc import Iterator

from drift.config import (
    AdvantageEstimator,
    AllConfig,
    BlockConfig,
    CoupledConfig,
    CoupledRatioConfig,
    ElboConfig,
    Importance,
    InformativeConfig,
    KLEstimator,
    Level,
    MaskingStrategy,
    Normalization,
    ObjectiveConfig,
    PolicyLoss,
    PromptOrder,
    RewardControl,
    RunConfig,
    SFTConfig,
    Times,
    ValueConfig,
)

# whose views are the steps of the trace in order, each token scored in one of them
STEPS = (MaskingStrategy.trace, MaskingStrategy.replay)
RATIO_FREE = (PolicyLoss.reinforce, PolicyLoss.sandwich)
UNCLIPPED = (*RATIO_FREE, PolicyLoss.boundary)
LEVELS: dict[PolicyLoss, tuple[Level, ...]] = {
    PolicyLoss.reinforce: (Level.view,),
    PolicyLoss.ppo_clip: (Level.view, Level.token, Level.sequence),
    PolicyLoss.sandwich: (Level.sequence,),
    PolicyLoss.boundary: (Level.sequence,),
    PolicyLoss.self_normalized: (Level.sequence,),
}
# whose views show the sampler's own states
STATES = (MaskingStrategy.sequential, MaskingStrategy.replay)
# whose views hide a token at several t, with 1/t weights
TIMES = (MaskingStrategy.elbo, MaskingStrategy.quadrature, MaskingStrategy.block)
# whose views score some tokens more often than others
UNEVEN = (MaskingStrategy.sequential, MaskingStrategy.random, MaskingStrategy.block)
# each of whose views estimates the whole row's log-likelihood
WHOLE = (MaskingStrategy.elbo, MaskingStrategy.random, MaskingStrategy.all)


def choices(strategies: tuple[MaskingStrategy, ...]) -> str:
    """`masking=elbo, quadrature or block`"""
    *first, last = strategies
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
    if objective.policy_loss in RATIO_FREE and objective.num_updates > 1:
        yield (
            f"objective.num_updates={objective.num_updates} needs a ratio to the old policy, which "
            f"objective.policy_loss={objective.policy_loss} has not; "
            "set objective.policy_loss=ppo_clip or num_updates=1"
        )
    if objective.importance != Importance.none:
        yield from _importance(config)
    if config.rollout.temperature == 0:
        yield (
            "rollout.temperature=0 makes every completion of a group the same; "
            "use a value above 0, for example 1"
        )
    yield from _level(config)
    yield from _clips(config)
    yield from _bounds(config)
    yield from _value(config)


def idle_settings(config: RunConfig | SFTConfig) -> Iterator[str]:
    """What changes nothing beside other settings, and is no mistake on one side of a sweep."""
    num_updates = config.num_steps
    if isinstance(config, RunConfig):
        objective, default = config.objective, ObjectiveConfig()
        num_updates *= objective.num_updates
        clips = (objective.clip_low, objective.clip_high)
        if objective.num_updates == 1 and clips != (default.clip_low, default.clip_high):
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
    if (settings.order == PromptOrder.informative) != isinstance(settings, InformativeConfig):
        yield (
            f"curriculum.order={settings.order} is not set by itself; "
            f"use curriculum={settings.order}"
        )
    if control == RewardControl.shuffle and settings.max_rounds > 1:
        yield (
            f"curriculum.max_rounds={settings.max_rounds} keeps groups by their own rewards, which "
            "objective.reward_control=shuffle mixes; use curriculum.max_rounds=1"
        )


def _importance(config: RunConfig) -> Iterator[str]:
    objective, strategy = config.objective, config.masking.strategy
    if strategy not in STATES:
        yield (
            f"objective.importance={objective.importance} compares sampler and learner in the "
            f"sampler's own states, which masking={strategy} does not score; use "
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
    objective = config.objective
    allowed = LEVELS[objective.policy_loss]
    if objective.level not in allowed:
        yield (
            f"objective.level={objective.level} does not go with "
            f"objective.policy_loss={objective.policy_loss}; use level={' or '.join(allowed)}"
        )
    strategy = config.masking.strategy
    if objective.level == Level.token and strategy in UNEVEN:
        yield (
            f"objective.level=token adds up a token's views, but masking={strategy} scores some "
            "tokens more often than others; use level=view or sequence, or another masking"
        )
    exploding = objective.kl_coef != 0 and objective.kl_estimator == KLEstimator.k3
    if objective.level == Level.sequence and exploding:
        yield (
            "objective.kl_estimator=k3 is the exponential of a whole completion's log-ratio at "
            "objective.level=sequence; use k2"
        )
    if (
        objective.policy_loss == PolicyLoss.self_normalized
        and objective.normalization != Normalization.sample
    ):
        yield (
            f"objective.normalization={objective.normalization} does not apply to "
            "objective.policy_loss=self_normalized, which normalizes each group itself; use sample"
        )


def _clips(config: RunConfig) -> Iterator[str]:
    objective, default = config.objective, ObjectiveConfig()
    unclipped = objective.policy_loss in UNCLIPPED
    for key, idle, where in (
        ("clip_low", unclipped, "policy_loss=ppo_clip"),
        ("clip_high", unclipped, "policy_loss=ppo_clip"),
        ("importance_cap", objective.importance == Importance.none, "importance=truncated"),
    ):
        value = vars(objective)[key]
        if idle and value != vars(default)[key]:
            yield f"objective.{key}={value} does not apply; remove it or set objective.{where}"


def _bounds(config: RunConfig) -> Iterator[str]:
    objective, strategy = config.objective, config.masking.strategy
    sandwich = objective.policy_loss == PolicyLoss.sandwich
    exponent, share = objective.bound_exponent, objective.bound_share
    for key, value in (("bound_exponent", exponent), ("bound_share", share)):
        if value is not None and not sandwich:
            yield (
                f"objective.{key}={value} applies to objective.policy_loss=sandwich only; "
                "remove it or set policy_loss=sandwich"
            )
    if sandwich and exponent is None:
        yield f"objective.bound_exponent={exponent} must be above 1 for policy_loss=sandwich"
    if sandwich and share is None:
        yield f"objective.bound_share={share} must be from 0 to 1 for policy_loss=sandwich"
    if sandwich and strategy not in TIMES:
        yield (
            f"objective.policy_loss=sandwich bounds the likelihood by views at several t, which "
            f"masking={strategy} has not; use {choices(TIMES)}"
        )
    if objective.policy_loss == PolicyLoss.boundary and strategy not in WHOLE:
        yield (
            "objective.policy_loss=boundary needs views that each estimate the whole "
            f"likelihood, which those of masking={strategy} do not; use {choices(WHOLE)}"
        )


def _value(config: RunConfig) -> Iterator[str]:
    objective, strategy = config.objective, config.masking.strategy
    if objective.advantage != AdvantageEstimator.gae:
        default = ValueConfig()
        for key, value in vars(objective.value).items():
            if value != vars(default)[key]:
                yield (
                    f"objective.value.{key}={value} applies to objective.advantage=gae only; "
                    "remove it or set advantage=gae"
                )
        return
    if strategy not in STEPS:
        yield (
            "objective.advantage=gae has a value for each step of the trace, which the views of "
            f"masking={strategy} are not; use {choices(STEPS)}"
        )
    if objective.level != Level.view:
        yield (
            "objective.advantage=gae gives every token an advantage of its own, which "
            f"objective.level={objective.level} cannot take; use level=view"
        )
