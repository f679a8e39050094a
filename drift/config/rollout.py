"""Settings of decoding: steps, remasking, caches, whose weights. Imports no torch."""

from dataclasses import dataclass
from enum import StrEnum

from omegaconf import MISSING

from drift.config.bounds import not_negative, positive, share
from drift.config.registry import Names, Registry
from drift.config.task import EndSuppression


class CacheMode(StrEnum):
    auto = "auto"  # block where attention is block-causal, else none: exact
    none = "none"  # exact
    prefix = "prefix"  # the block and what follows it are recomputed
    dual = "dual"  # the block alone is recomputed
    block = "block"  # of block-causal attention: finished blocks are kept, exact


class ConfidenceFrom(StrEnum):
    network = "network"  # its softmax at temperature 1
    drawn = "drawn"  # tempered and narrowed, as the token is drawn


class Schedule(StrEnum):
    equal = "equal"  # an equal share of what is left
    dream = "dream"  # Dream's: a little later, a step may commit nothing
    sdar = "sdar"  # SDAR's: an equal share of the whole block, whatever is left of it


class RolloutWeights(StrEnum):
    auto = "auto"  # shared; replica where ZeRO-3 splits the weights
    shared = "shared"  # the trained ones
    replica = "replica"  # a copy in model.dtype
    gather = "gather"  # of ZeRO-3: each block is collected when it runs


@dataclass
class RolloutConfig:
    """What every rule of remasking has: which drawn tokens a denoising step commits."""

    confidence: str = "probability"  # what makes a token sure
    confidence_from: ConfidenceFrom = ConfidenceFrom.network  # in which distribution
    prompts_per_step: int = positive(32)  # of a step, over all ranks
    group_size: int = positive(8)  # completions of one prompt
    gen_length: int = positive(MISSING)  # tokens of the canvas: the most that a completion has
    # tokens decoded before the next block begins; divides gen_length
    block_length: int = positive(MISSING)
    steps: int = positive(MISSING)  # denoising steps for the whole canvas: the most that are taken
    # in sampler and learner; 0 = the likeliest tokens
    temperature: float = not_negative(1.0, finite=True)
    top_p: float | None = share(None, zero=False)  # draw from the nucleus of this probability
    top_k: int | None = positive(None)  # draw from the likeliest words
    # of the order of positions: 0 = the surest first
    position_temperature: float = not_negative(0.0, finite=True)
    suppress_end: EndSuppression = EndSuppression.none  # how stop tokens are kept from early places
    cache: CacheMode = CacheMode.auto  # of keys and values
    # of cache=prefix: tokens recomputed behind the block; null = all
    horizon: int | None = not_negative(None)
    refresh_every: int | None = positive(None)  # steps between refreshes in a block; null = none
    weights: RolloutWeights = RolloutWeights.auto  # which weights the sampler uses
    compile: bool = False  # of the cached step, on a GPU with CUDA graphs; its cache stays
    max_rows: int = positive(256)  # rows decoded at the same time on one rank

    def cache_for(self, block_length: int) -> CacheMode:
        """`cache` with auto settled, for a network of that block length (0: full attention)."""
        if self.cache != CacheMode.auto:
            return self.cache
        return CacheMode.block if block_length else CacheMode.none

    @property
    def steps_of_block(self) -> int:
        """Denoising steps for each block: the most that are taken."""
        return self.steps * self.block_length // self.gen_length


@dataclass
class StaticConfig(RolloutConfig):
    """The same number of tokens each step."""

    schedule: Schedule = Schedule.equal  # how many tokens each step commits


@dataclass
class ThresholdConfig(RolloutConfig):
    """All tokens that are sure enough."""

    threshold: float = share(0.9, zero=False)  # the least confidence


@dataclass
class DynamicConfig(RolloutConfig):
    """All tokens that are sure enough if they are as many as SDAR's schedule, else as many."""

    threshold: float = share(0.9, zero=False)  # a token is sure above it


@dataclass
class FactorConfig(RolloutConfig):
    """The more tokens together, the surer each must be."""

    factor: float = positive(1.0)  # larger commits more tokens together


CONFIDENCE_NAMES = Names(  # implemented in drift/rollout/sampling.py
    "rollout.confidence",
    [
        "probability",  # of the drawn token
        "margin",  # the likeliest word's probability minus the second's
        "entropy",  # the negative of it
        "random",  # a drawn order
    ],
)
ROLLOUTS = Registry[RolloutConfig](
    "rollout",
    {
        "static": StaticConfig,
        "threshold": ThresholdConfig,
        "dynamic": DynamicConfig,
        "factor": FactorConfig,
    },
)
