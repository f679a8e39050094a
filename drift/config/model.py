"""Settings of the model: checkpoint, precision, attention, LoRA. Imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from drift.config.bounds import not_negative, positive
from drift.config.registry import Names, Registry


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class AttentionBackend(StrEnum):
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"
    flex_attention = "flex_attention"


@dataclass
class LoraConfig:
    rank: int = not_negative(0)  # 0: every weight is trained
    alpha: float = positive(16.0, finite=True)  # the update is scaled by alpha / rank
    # the matrices of each block that get an adapter
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj"]
    )


@dataclass
class ModelConfig:
    name: str = MISSING  # of the option, for the names of folders and runs
    family: str = MISSING  # whose file format and network the checkpoint has
    path: str = MISSING  # a folder, or a name on the Hugging Face hub
    revision: str | None = None  # of the hub: a branch, tag or commit; null = its main branch
    # tokens of a block of block-causal attention, 0 = full; null = as the checkpoint says
    block_length: int | None = not_negative(None)
    dtype: Dtype = Dtype.bfloat16  # of the computation; the trained weights stay float32
    attention: AttentionBackend = AttentionBackend.sdpa  # how attention is computed
    lora: LoraConfig = field(default_factory=LoraConfig)
    gradient_checkpointing: bool = False  # less memory, about a third more time in updates
    # a learning rate known to work for RL on this model; optim.lr takes it
    lr: float = positive(MISSING, finite=True)


FAMILY_NAMES = Names(  # implemented in drift/policy
    "model.family",
    [
        "llada",
        "dream",
        "sdar",
        "a2d",
        "stable_diffcoder",
        "fast_dllm_v2",
    ],
)
MODELS = Registry("model", {"base": ModelConfig})
