"""Settings of the loss: what is done with the log-probs of a masking. Imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum


class AdvantageEstimator(StrEnum):
    group_normalized = "group_normalized"
    group_centered = "group_centered"
    leave_one_out = "leave_one_out"
    softmax = "softmax"
    gae = "gae"  # of a value model that is trained beside the policy


class PolicyLoss(StrEnum):
    reinforce = "reinforce"
    ppo_clip = "ppo_clip"
    sandwich = "sandwich"
    boundary = "boundary"
    self_normalized = "self_normalized"


class Level(StrEnum):
    """Whose log-prob the policy loss and the KL are functions of."""

    view = "view"  # of each scored token in each view, on its own
    token = "token"  # of each token, its views added up by their weights
    sequence = "sequence"  # of the completion: the mean over its tokens


class KLEstimator(StrEnum):
    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class Normalization(StrEnum):
    token = "token"
    sample = "sample"
    sequence = "sequence"
    canvas = "canvas"


class RewardControl(StrEnum):
    none = "none"
    shuffle = "shuffle"


class Importance(StrEnum):
    none = "none"
    truncated = "truncated"


@dataclass
class ValueConfig:
    """Of advantage=gae: the value model, a head on the policy's network (arXiv 2509.06949)."""

    gamma: float = 1.0  # what a step's reward counts one step earlier
    gae_lambda: float = 1.0  # 1: the reward alone is the target, 0: the next step's value
    clip: float = 0.2  # how far from its old value a token's value counts as improved
    coef: float = 0.1  # of the value loss beside the policy's
    lr: float = 0.1  # of the head: about as much as one update moves a value


@dataclass
class ObjectiveConfig:
    policy_loss: PolicyLoss = PolicyLoss.reinforce
    level: Level = Level.view
    num_updates: int = 1  # optimizer steps on one rollout
    clip_low: float = 0.2
    clip_high: float = 0.2
    bound_exponent: float | None = None  # of policy_loss=sandwich: beta > 1 of the upper bound
    bound_share: float | None = None  # of policy_loss=sandwich: 1 = the upper bound, 0 = the lower
    advantage: AdvantageEstimator = AdvantageEstimator.group_normalized
    value: ValueConfig = field(default_factory=ValueConfig)
    normalization: Normalization = Normalization.sample
    kl_coef: float = 0.0  # 0: no reference model is loaded
    kl_estimator: KLEstimator = KLEstimator.k3
    entropy_coef: float = 0.0
    importance: Importance = Importance.none  # truncated: corrects a cached sampler's rollouts
    importance_cap: float = 2.0  # the most that a token counts
    reward_control: RewardControl = RewardControl.none
