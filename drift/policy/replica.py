"""The sampler's own copy of a policy, in the precision of rollouts, refreshed in place."""

import torch

from drift.policy import lora
from drift.policy.backbone import Backbone
from drift.policy.base import Policy


class Replica(Policy):
    """A frozen copy of `source`; a LoRA adapter is merged into its weights.

    It rounds to `dtype` once at each refresh, where the training weights under autocast round at
    each forward; and what it computes is not wrapped by a training engine.
    """

    def __init__(self, source: Policy, dtype: torch.dtype):
        with torch.device("meta"):
            backbone = Backbone(source.backbone.config)
        backbone = backbone.to(dtype).to_empty(device=source.device).requires_grad_(False)
        if source.backbone.config.tie_head:
            backbone.head.weight = backbone.embed.weight
        backbone.attention = source.backbone.attention
        super().__init__(
            backbone, source.family, source.special,
            raw_config=source.raw_config, tokenizer=source._tokenizer,
        )  # fmt: skip
        self.refresh(source)

    @torch.no_grad()
    def refresh(self, source: Policy) -> None:
        """Take over the weights of `source`, in place."""
        weights = lora.merged_weights(source)
        for name, parameter in self.backbone.named_parameters():
            parameter.copy_(weights[name])
