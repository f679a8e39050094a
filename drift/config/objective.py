"""Settings of the loss: what is done with the log-probs of a masking. Imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from drift.config.bounds import above, at_least, not_negative, positive, share
from drift.config.registry import Registry


class AdvantageEstimator(StrEnum):
    group_normalized = "group_normalized"  # minus the group's mean, over its std (GRPO)
    z_score = "z_score"  # the same with the population's std, without a floor (TraceRL)
    group_centered = "group_centered"  # minus the group's mean (Dr. GRPO)
    leave_one_out = "leave_one_out"  # minus the mean of the others (RLOO)
    softmax = "softmax"  # softmax(A) - softmax(-A) over the group (wd1)
    gae = "gae"  # by a value model that is trained beside the policy (TraceRL)


class Level(StrEnum):
    """Whose log-prob the policy loss and the KL are functions of."""

    view = "view"  # of each scored token in each view, on its own
    token = "token"  # of each token, its views added up by their weights
    sequence = "sequence"  # of the completion: the mean over its tokens


class KLEstimator(StrEnum):
    k1 = "k1"  # log p - log q: pulls nowhere on average
    k2 = "k2"  # (log p - log q)^2 / 2
    k3 = "k3"  # q / p - 1 - log(q / p)


class KLReference(StrEnum):
    """The policy that the KL is to."""

    start = "start"  # the start of the run
    before = "before"  # the policy before this rollout's updates
    follow = "follow"  # the start, moved towards the policy every `follow_every` optimizer steps


class KLReduction(StrEnum):
    mean = "mean"  # over the tokens that the normalization takes the mean of
    sum = "sum"  # over the tokens of a view


class Normalization(StrEnum):
    token = "token"  # mean over the scored tokens of the batch
    sample = "sample"  # mean over completions of their means
    sequence = "sequence"  # mean over completions of their sums
    canvas = "canvas"  # the same, over rollout.gen_length
    view = "view"  # mean over views of their means
    view_token = "view_token"  # mean over the tokens of all k-th views, then over k


class RewardControl(StrEnum):
    none = "none"
    shuffle = "shuffle"  # the rewards of a step, over its completions


class Importance(StrEnum):
    none = "none"
    truncated = "truncated"  # corrects the rollouts of a cached sampler


@dataclass
class ValueConfig:
    """Of advantage=gae: the value model, a head on the policy's network (arXiv 2509.06949)."""

    gamma: float = share(1.0)  # what a step's reward counts one step earlier
    gae_lambda: float = share(1.0)  # 1: the reward alone is the target, 0: the next step's value
    # how far from its old value a token's value counts as improved
    clip: float = positive(0.2, finite=True)
    coef: float = not_negative(0.1, finite=True)  # of the value loss beside the policy's
    lr: float = positive(0.1, finite=True)  # of the head: about as much as one update moves a value


@dataclass
class ObjectiveConfig:
    """What every policy loss has.

    `levels` has those that the loss is defined at, `has_ratio` says whether it has a ratio to the
    old policy, without which a rollout is good for one update.
    """

    levels: ClassVar[tuple[Level, ...]] = (Level.view,)
    has_ratio: ClassVar[bool] = True

    level: Level = Level.view  # whose log-prob the policy loss is a function of
    num_updates: int = positive(1)  # passes over one rollout, each with its optimizer steps
    # parts of the views of a rollout, an optimizer step for each
    num_minibatches: int = positive(1)
    advantage: AdvantageEstimator = AdvantageEstimator.group_normalized  # from rewards
    value: ValueConfig = field(default_factory=ValueConfig)
    normalization: Normalization = Normalization.sample  # what a token counts in the loss
    # of the KL to the reference; 0: no reference model is loaded
    kl_coef: float = not_negative(0.0, finite=True)
    kl_estimator: KLEstimator = KLEstimator.k3  # p the policy, q the reference
    kl_reduction: KLReduction = KLReduction.mean  # of the KL over tokens
    kl_reference: KLReference = KLReference.start  # q
    # optimizer steps between two moves of a following reference, skipped steps included; it moves
    # at the end of a rollout's updates: not below num_updates * num_minibatches
    follow_every: int = positive(64)
    follow_share: float = share(0.6, zero=False)  # of the policy in the moved reference
    entropy_coef: float = not_negative(0.0, finite=True)  # of the entropy, which is rewarded
    importance: Importance = Importance.none  # p_policy / p_sampler as a weight of each token
    importance_cap: float = positive(2.0)  # the most that a token counts
    reward_control: RewardControl = RewardControl.none  # for a run that must not learn

    @property
    def num_steps(self) -> int:
        """Optimizer steps on one rollout."""
        return self.num_updates * self.num_minibatches

    @property
    def has_reference(self) -> bool:
        """Whether the KL is to a model beside the policy, or to its base."""
        return self.kl_coef != 0 and self.kl_reference != KLReference.before


@dataclass
class ClippedConfig(ObjectiveConfig):
    """A ratio to the old policy that is clipped."""

    # the ratio is clipped below 1 - clip_low
    clip_low: float = share(0.2, one=False, why="the ratio is positive")
    clip_high: float = not_negative(0.2, finite=True)  # and above 1 + clip_high


@dataclass
class DualClippedConfig(ClippedConfig):
    """The same, where A < 0 from above too (dual-clip PPO, arXiv 1912.09729)."""

    # where A < 0 the ratio counts as clip_dual at most; null: without a limit
    clip_dual: float | None = above(None, 1)


@dataclass
class ReinforceConfig(ObjectiveConfig):
    """-A log p."""

    has_ratio: ClassVar[bool] = False


@dataclass
class PpoClipConfig(DualClippedConfig):
    """The ratio to the old policy times A, clipped."""

    levels: ClassVar[tuple[Level, ...]] = (Level.view, Level.token, Level.sequence)


@dataclass
class SandwichConfig(ObjectiveConfig):
    """A lower bound for good answers, an upper one for bad (SPG, arXiv 2510.09541)."""

    levels: ClassVar[tuple[Level, ...]] = (Level.sequence,)
    has_ratio: ClassVar[bool] = False

    level: Level = Level.sequence  # no other
    bound_exponent: float = at_least(1.5, 1)  # beta of the upper bound
    bound_share: float = share(0.5)  # of the upper bound for bad answers; 0 = the lower alone


@dataclass
class BoundaryConfig(DualClippedConfig):
    """A bound of the ratio that is a sum over views, clipped in each (BGPO, arXiv 2510.11683)."""

    levels: ClassVar[tuple[Level, ...]] = (Level.sequence,)

    level: Level = Level.sequence  # no other


@dataclass
class SelfNormalizedConfig(ClippedConfig):
    """Clipped ratios over their group's sum (StableDRL, arXiv 2603.06743)."""

    levels: ClassVar[tuple[Level, ...]] = (Level.sequence,)

    level: Level = Level.sequence  # no other


OBJECTIVES = Registry[ObjectiveConfig](
    "objective",
    {
        "reinforce": ReinforceConfig,
        "ppo_clip": PpoClipConfig,
        "sandwich": SandwichConfig,
        "boundary": BoundaryConfig,
        "self_normalized": SelfNormalizedConfig,
    },
)
