"""Settings of the loss: what is done with the log-probs of a masking. Imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum

from drift.config.bounds import above, not_negative, positive, share


class AdvantageEstimator(StrEnum):
    group_normalized = "group_normalized"  # minus the group's mean, over its std (GRPO)
    group_centered = "group_centered"  # minus the group's mean (Dr. GRPO)
    leave_one_out = "leave_one_out"  # minus the mean of the others (RLOO)
    softmax = "softmax"  # softmax(A) - softmax(-A) over the group (wd1)
    gae = "gae"  # by a value model that is trained beside the policy (TraceRL)


class PolicyLoss(StrEnum):
    reinforce = "reinforce"  # -A log p
    ppo_clip = "ppo_clip"  # the ratio to the old policy times A, clipped
    sandwich = "sandwich"  # a lower bound for good answers, an upper one for bad (SPG)
    boundary = "boundary"  # a bound of the ratio that is a sum over views (BGPO)
    self_normalized = "self_normalized"  # clipped ratios over their group's sum (StableDRL)


class Level(StrEnum):
    """Whose log-prob the policy loss and the KL are functions of."""

    view = "view"  # of each scored token in each view, on its own
    token = "token"  # of each token, its views added up by their weights
    sequence = "sequence"  # of the completion: the mean over its tokens


class KLEstimator(StrEnum):
    k1 = "k1"  # log p - log q: pulls nowhere on average
    k2 = "k2"  # (log p - log q)^2 / 2
    k3 = "k3"  # q / p - 1 - log(q / p)


class Normalization(StrEnum):
    token = "token"  # mean over the scored tokens of the batch
    sample = "sample"  # mean over completions of their means
    sequence = "sequence"  # mean over completions of their sums
    canvas = "canvas"  # the same, over rollout.gen_length


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
    policy_loss: PolicyLoss = PolicyLoss.reinforce  # what is done with advantages and log-probs
    level: Level = Level.view  # whose log-prob it is a function of
    num_updates: int = positive(1)  # optimizer steps on one rollout
    # the ratio is clipped below 1 - clip_low
    clip_low: float = share(0.2, one=False, why="the ratio is positive")
    clip_high: float = not_negative(0.2, finite=True)  # and above 1 + clip_high
    # of policy_loss=sandwich: beta > 1 of the upper bound
    bound_exponent: float | None = above(None, 1)
    # of policy_loss=sandwich: 1 = the upper bound, 0 = the lower
    bound_share: float | None = share(None)
    advantage: AdvantageEstimator = AdvantageEstimator.group_normalized  # from rewards
    value: ValueConfig = field(default_factory=ValueConfig)
    normalization: Normalization = Normalization.sample  # what a token counts in the loss
    # of the KL to the start of the run; 0: no reference model is loaded
    kl_coef: float = not_negative(0.0, finite=True)
    kl_estimator: KLEstimator = KLEstimator.k3  # p the policy, q the reference
    entropy_coef: float = not_negative(0.0, finite=True)  # of the entropy, which is rewarded
    importance: Importance = Importance.none  # p_policy / p_sampler as a weight of each token
    importance_cap: float = positive(2.0)  # the most that a token counts
    reward_control: RewardControl = RewardControl.none  # for a run that must not learn
