"""The sampler's own weights, in the precision of rollouts, taken from those that are trained."""

import torch
import torch.distributed as dist
from torch import Tensor

from drift.cluster.zero import gathered
from drift.common.errors import ConfigError
from drift.config.checks import refused_weights
from drift.config.commands import RunConfig
from drift.config.model import Dtype, ModelConfig
from drift.config.rollout import RolloutConfig, RolloutWeights
from drift.policy import lora
from drift.policy.backbone import Backbone
from drift.policy.base import Policy
from drift.policy.loading import torch_dtype


def parts(backbone: Backbone) -> list[str]:
    """The modules that are copied one after another: no more than one is gathered at a time."""
    blocks = [f"blocks.{i}" for i in range(backbone.config.num_layers)]
    return ["embed", *blocks, "norm", *([] if backbone.config.tie_head else ["head"])]


class Replica(Policy):
    """A frozen copy of a policy, an adapter beside its base: merged, bfloat16 would round it away.

    It rounds to `dtype` once at each refresh, where the training weights under autocast round at
    each forward; and what it computes is not wrapped by a training engine. Where ZeRO-3 splits the
    weights, every rank has a whole copy.
    """

    def __init__(self, trained: Policy, dtype: torch.dtype):
        with torch.device("meta"):
            super().__init__(
                Backbone(trained.backbone.config).to(dtype),
                trained.family,
                trained.special,
                raw_config=trained.raw_config,
                tokenizer=trained._tokenizer,
            )
            if trained.adapter:
                lora.attach(self, trained.adapter, like=lora.factors(trained))
        self.fill(trained.device)
        backbone = self.backbone.requires_grad_(False)
        if trained.backbone.config.tie_head:
            backbone.head.weight = backbone.embed.weight
        backbone.attention = trained.backbone.attention
        self.refresh(trained, everything=True)

    def fill(self, device: torch.device) -> None:
        """Give the backbone memory."""
        self.backbone.to_empty(device=device)

    def refresh(self, trained: Policy, *, everything: bool = False) -> None:
        """Take over the trained weights of `trained`, in place; a collective where they are split.

        Args:
            trained: the source.
            everything: the frozen ones too.
        """
        for part in parts(self.backbone):
            self.copy(trained, part, everything=everything)

    @torch.no_grad()
    def copy(self, trained: Policy, part: str, *, everything: bool = True) -> None:
        weights = {
            name: weight
            for name, weight in trained.backbone.get_submodule(part).named_parameters()
            if everything or weight.requires_grad
        }
        own = self.backbone.get_submodule(part)
        with gathered(weights.values(), trained.split):
            for name, weight in weights.items():
                own.get_parameter(name).copy_(weight)


@torch.no_grad()
def move_towards(reference: Policy, trained: Policy, share: float) -> None:
    """reference <- share * trained + (1 - share) * reference; a collective where it is split.

    As TRL's reference model follows a policy (`sync_ref_model`, the code of arXiv 2506.20639).
    """
    for part in parts(trained.backbone):
        weights = dict(trained.backbone.get_submodule(part).named_parameters())
        own = reference.backbone.get_submodule(part)
        with gathered(weights.values(), trained.split):
            for name, weight in weights.items():
                target = own.get_parameter(name)
                target.lerp_(weight.to(target.dtype), share)


class Gathered(Replica):
    """A sampler that holds the weights of one block; each block's are gathered when it runs.

    For ZeRO-3 where a whole copy does not fit. The ranks gather together, so they take their
    network evaluations in step: one that has nothing left to decode goes on gathering until all are
    done (`settle`).
    """

    def __init__(self, trained: Policy, dtype: torch.dtype):
        super().__init__(trained, dtype)
        self.trained = (trained,)  # in a tuple: it is no module of this one
        self.turn = 0  # the block that runs next
        # every way through a block begins with its first norm
        norm = self.backbone.blocks[0].get_submodule("attn_norm")
        norm.register_forward_pre_hook(lambda *_: self.bring())

    def fill(self, device: torch.device) -> None:
        blocks = self.backbone.blocks
        for i in range(1, len(blocks)):
            blocks[i] = blocks[0]
        super().fill(device)

    def refresh(self, trained: Policy, *, everything: bool = False) -> None:
        for part in parts(self.backbone):
            if not part.startswith("blocks."):
                self.copy(trained, part, everything=everything)

    def bring(self) -> None:
        """Fill the one block with the weights of the block that runs now."""
        if self.turn == 0:
            self.num_running(1)
        self.copy(*self.trained, f"blocks.{self.turn}")
        self.turn = (self.turn + 1) % self.backbone.config.num_layers

    def num_running(self, me: int) -> int:
        """How many ranks make a network evaluation now."""
        count: Tensor = torch.tensor(me, device=self.device)
        dist.all_reduce(count)
        return int(count)

    def settle(self) -> None:
        while self.num_running(0):
            for i in range(self.backbone.config.num_layers):
                self.copy(*self.trained, f"blocks.{i}")


def sampler_weights(model: ModelConfig, split: bool, rollout: RolloutConfig) -> RolloutWeights:
    """`rollout.weights` with `auto` settled; split: ZeRO-3 splits the trained weights."""
    if rollout.weights != RolloutWeights.auto:
        return rollout.weights
    # compiled code would cast float32 weights anew at every denoising step
    cast = rollout.compile and model.dtype != Dtype.float32 and not model.lora.rank
    return RolloutWeights.replica if split or cast else RolloutWeights.shared


def sampler_of(policy: Policy, config: RunConfig) -> Policy:
    """Whose weights decode: `rollout.weights`."""
    weights = sampler_weights(config.model, policy.split, config.rollout)
    if reason := refused_weights(weights, policy.split):
        raise ConfigError(reason)
    if weights == RolloutWeights.shared:
        return policy
    if weights == RolloutWeights.replica and policy.adapter and not policy.split:
        return policy  # a copy would be the same numbers: its base is frozen in model.dtype
    kind = Replica if weights == RolloutWeights.replica else Gathered
    return kind(policy, torch_dtype(config.model.dtype))
