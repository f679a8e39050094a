"""Settings of the maskings: what is hidden of a completion, and what is scored. No torch."""

from dataclasses import dataclass
from enum import StrEnum

from omegaconf import MISSING


class MaskingStrategy(StrEnum):
    sequential = "sequential"
    random = "random"
    coupled = "coupled"
    coupled_ratio = "coupled_ratio"
    all = "all"
    trace = "trace"
    replay = "replay"
    elbo = "elbo"
    quadrature = "quadrature"
    block = "block"
    left_to_right = "left_to_right"


class Times(StrEnum):
    """How the K masking times t ~ U(0, 1) of a row are drawn together."""

    independent = "independent"
    antithetic = "antithetic"  # pairs t and 1 - t, the second view hides what the first shows
    stratified = "stratified"  # one in each of K equal parts of (0, 1)


@dataclass
class MaskingConfig:
    strategy: MaskingStrategy = MISSING  # of the option
    prompt_mask_prob: float = 0.0  # of each prompt token, in each view, to be hidden too


@dataclass
class SequentialConfig(MaskingConfig):
    """RLDF's masking (arXiv 2605.25638)."""

    num_views: int = 4  # denoising steps that are drawn
    temperature: float = 1.0  # of the choice of steps: .inf = uniform, 0 = the most surprising
    low_prob_threshold: float = 0.6  # masked later tokens score if as likely; 1 = none, 0 = all


@dataclass
class RandomConfig(MaskingConfig):
    num_views: int = 4  # draws
    ratio: float = 0.3  # share of the tokens that a view hides and scores


@dataclass
class CoupledConfig(MaskingConfig):
    num_views: int = 2  # even: a half and its complement


@dataclass
class CoupledRatioConfig(MaskingConfig):
    """coupled-GRPO's masking as DiffuCoder has it (arXiv 2506.20639)."""

    num_views: int = 3  # everything hidden, a part, the rest; or several such triples
    min_ratio: float = 0.2  # the part's share of the tokens is drawn between the two
    max_ratio: float = 0.8  # the largest share of the part


@dataclass
class AllConfig(MaskingConfig):
    num_views: int = 1  # more only with prompt_mask_prob: nothing else differs


@dataclass
class TraceConfig(MaskingConfig):
    """TraceRL's masking (arXiv 2509.06949): a view for every group of denoising steps."""

    shrink: int = 8  # denoising steps of a group


@dataclass
class ReplayConfig(MaskingConfig):
    """A view for every denoising step: exact for the sampler, as many forwards as it took."""


@dataclass
class ElboConfig(MaskingConfig):
    num_views: int = 4  # draws of t
    times: Times = Times.stratified  # how they are drawn together
    exact_count: bool = False  # hide a fixed number of tokens, not each with probability t


@dataclass
class QuadratureConfig(MaskingConfig):
    """GDPO's masking (arXiv 2510.08554)."""

    num_views: int = 3  # Gauss-Legendre points over t


@dataclass
class BlockConfig(MaskingConfig):
    """SPG's masking (arXiv 2510.09541)."""

    num_views: int = 2  # blocks that are drawn
    block_length: int = MISSING  # tokens of a block; divides rollout.gen_length


@dataclass
class LeftToRightConfig(MaskingConfig):
    """JustGRPO's masking: a view for every token, which shows what stands before it."""
