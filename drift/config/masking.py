"""Settings of the maskings: what is hidden of a completion, and what is scored. No torch."""

from dataclasses import dataclass
from enum import StrEnum

from omegaconf import MISSING

from drift.config.bounds import between, not_negative, positive, share
from drift.config.registry import Registry


class Times(StrEnum):
    """How the K masking times t ~ U(0, 1) of a row are drawn together."""

    independent = "independent"
    antithetic = "antithetic"  # pairs t and 1 - t, the second view hides what the first shows
    stratified = "stratified"  # one in each of K equal parts of (0, 1)


class Tail(StrEnum):
    """What was committed after the first stop token, in the same block."""

    sampled = "sampled"  # is scored like other tokens, since the sampler drew it
    exclude = "exclude"  # is not scored and does not count in the weights of steps


@dataclass
class MaskingConfig:
    tail: Tail = Tail.sampled  # of the tokens after the first stop token
    redraw: bool = False  # new views for each of objective.num_updates
    # of each prompt token, in each view, to be hidden too
    prompt_mask_prob: float = share(0.0, one=False)


@dataclass
class SequentialConfig(MaskingConfig):
    """RLDF's masking (arXiv 2605.25638)."""

    num_views: int = positive(4)  # denoising steps that are drawn
    # of the choice of steps: .inf = uniform, 0 = the most surprising
    temperature: float = not_negative(1.0)
    # masked later tokens score if as likely; 1 = none, 0 = all
    low_prob_threshold: float = share(0.6)


@dataclass
class RandomConfig(MaskingConfig):
    num_views: int = positive(4)  # draws
    ratio: float = share(0.3, zero=False)  # share of the tokens that a view hides and scores


@dataclass
class CoupledConfig(MaskingConfig):
    num_views: int = positive(2)  # even: a half and its complement


@dataclass
class CoupledRatioConfig(MaskingConfig):
    """coupled-GRPO's masking as DiffuCoder has it (arXiv 2506.20639)."""

    num_views: int = positive(3)  # everything hidden, a part, the rest; or several such triples
    # the part's share of the tokens is drawn between the two
    min_ratio: float = share(0.2, zero=False, one=False, why="both parts weigh 1 / share")
    # the largest share of the part
    max_ratio: float = share(0.8, zero=False, one=False, why="both parts weigh 1 / share")


@dataclass
class AllConfig(MaskingConfig):
    num_views: int = positive(1)  # more only with prompt_mask_prob: nothing else differs


@dataclass
class TraceConfig(MaskingConfig):
    """TraceRL's masking (arXiv 2509.06949): a view for every group of denoising steps."""

    shrink: int = positive(8)  # denoising steps of a group


@dataclass
class ReplayConfig(MaskingConfig):
    """A view for every denoising step: exact for the sampler, as many forwards as it took."""


@dataclass
class ElboConfig(MaskingConfig):
    num_views: int = positive(4)  # draws of t
    times: Times = Times.stratified  # how they are drawn together
    exact_count: bool = False  # mask a fixed number of tokens, not each with probability t
    # of exact_count: the number of masked tokens is uniform over least_count..n; 1 masks at least
    # one token in every view
    least_count: int = between(0, 0, 1)


@dataclass
class QuadratureConfig(MaskingConfig):
    """GDPO's masking (arXiv 2510.08554)."""

    num_views: int = positive(3)  # Gauss-Legendre points over t


@dataclass
class BlockConfig(MaskingConfig):
    """SPG's masking (arXiv 2510.09541)."""

    num_views: int = positive(2)  # blocks that are drawn
    block_length: int = positive(MISSING)  # tokens of a block; divides rollout.gen_length


@dataclass
class LeftToRightConfig(MaskingConfig):
    """JustGRPO's masking: a view for every token, which shows the tokens before it."""


MASKINGS = Registry[MaskingConfig](
    "masking",
    {
        "sequential": SequentialConfig,
        "random": RandomConfig,
        "coupled": CoupledConfig,
        "coupled_ratio": CoupledRatioConfig,
        "all": AllConfig,
        "trace": TraceConfig,
        "replay": ReplayConfig,
        "elbo": ElboConfig,
        "quadrature": QuadratureConfig,
        "block": BlockConfig,
        "left_to_right": LeftToRightConfig,
    },
)
