"""Every setting of a run: one dataclass for each config group, and RunConfig over them.

A default stands here or in conf/, never in the code that reads it. This module imports no torch.
Checks that span groups are in validate.py.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from drift.config.bounds import any_number, at_least, not_negative, positive, share
from drift.config.cluster import (
    CLUSTERS as CLUSTERS,
    ClusterConfig as ClusterConfig,
    SlurmConfig as SlurmConfig,
    SubmititConfig as SubmititConfig,
)
from drift.config.curriculum import (
    CURRICULA as CURRICULA,
    CurriculumConfig as CurriculumConfig,
    EpochConfig as EpochConfig,
    InformativeConfig as InformativeConfig,
)
from drift.config.data import DataConfig, PrepareConfig, TrainDataConfig
from drift.config.eval import (
    EvalConfig as EvalConfig,
    GridConfig as GridConfig,
    TracePagesConfig as TracePagesConfig,
)
from drift.config.masking import (
    MASKINGS as MASKINGS,
    AllConfig as AllConfig,
    BlockConfig as BlockConfig,
    CoupledConfig as CoupledConfig,
    CoupledRatioConfig as CoupledRatioConfig,
    ElboConfig as ElboConfig,
    LeftToRightConfig as LeftToRightConfig,
    MaskingConfig as MaskingConfig,
    QuadratureConfig as QuadratureConfig,
    RandomConfig as RandomConfig,
    ReplayConfig as ReplayConfig,
    SequentialConfig as SequentialConfig,
    Times as Times,
    TraceConfig as TraceConfig,
)
from drift.config.objective import (
    OBJECTIVES as OBJECTIVES,
    AdvantageEstimator as AdvantageEstimator,
    BoundaryConfig as BoundaryConfig,
    ClippedConfig as ClippedConfig,
    Importance as Importance,
    KLEstimator as KLEstimator,
    Level as Level,
    Normalization as Normalization,
    ObjectiveConfig as ObjectiveConfig,
    PpoClipConfig as PpoClipConfig,
    ReinforceConfig as ReinforceConfig,
    RewardControl as RewardControl,
    SandwichConfig as SandwichConfig,
    SelfNormalizedConfig as SelfNormalizedConfig,
    ValueConfig as ValueConfig,
)
from drift.config.registry import Registry
from drift.config.task import (
    TASKS as TASKS,
    ArithmeticConfig as ArithmeticConfig,
    CodeConfig as CodeConfig,
    CountdownConfig as CountdownConfig,
    EndSuppression as EndSuppression,
    FilesConfig as FilesConfig,
    GeneratedTaskConfig as GeneratedTaskConfig,
    LongPrompts as LongPrompts,
    MathConfig as MathConfig,
    OneLineCodeConfig as OneLineCodeConfig,
    OwnTaskConfig as OwnTaskConfig,
    ReasoningGymConfig as ReasoningGymConfig,
    RewardConfig as RewardConfig,
    SandboxConfig as SandboxConfig,
    Split as Split,
    SudokuConfig as SudokuConfig,
    TaskConfig as TaskConfig,
    Truncated as Truncated,
)
from drift.config.tracking import (
    TRACKINGS as TRACKINGS,
    CompareConfig as CompareConfig,
    MlflowConfig as MlflowConfig,
    OffConfig as OffConfig,
    TrackConfig as TrackConfig,
    TrackingConfig as TrackingConfig,
    WandbConfig as WandbConfig,
    WandbMode as WandbMode,
)


class FamilyName(StrEnum):
    llada = "llada"
    dream = "dream"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class AttentionBackend(StrEnum):
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"
    flex_attention = "flex_attention"


class Confidence(StrEnum):
    probability = "probability"  # of the drawn token
    margin = "margin"  # the likeliest word's probability minus the second's
    entropy = "entropy"  # the negative of it
    random = "random"  # a drawn order


class CacheMode(StrEnum):
    none = "none"  # exact
    prefix = "prefix"  # the block and what stands behind it are recomputed
    dual = "dual"  # the block alone is recomputed


class RolloutWeights(StrEnum):
    auto = "auto"  # shared; replica where ZeRO-3 splits the weights
    shared = "shared"  # the trained ones
    replica = "replica"  # a copy in model.dtype
    gather = "gather"  # of ZeRO-3: each block is collected when it runs


class Schedule(StrEnum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


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
    family: FamilyName = MISSING  # whose file format and network the checkpoint has
    path: str = MISSING  # a folder, or a name on the Hugging Face hub
    revision: str | None = None  # of the hub: a branch, tag or commit; null = its main branch
    dtype: Dtype = Dtype.bfloat16  # of the computation; the trained weights stay float32
    attention: AttentionBackend = AttentionBackend.sdpa  # how attention is computed
    lora: LoraConfig = field(default_factory=LoraConfig)
    gradient_checkpointing: bool = False  # less memory, about a third more time in updates
    # a learning rate known to work for RL on this model; optim.lr takes it
    lr: float = positive(MISSING, finite=True)


@dataclass
class RolloutConfig:
    """What every rule of remasking has: which drawn tokens a denoising step commits."""

    confidence: Confidence = Confidence.probability  # what makes a token sure
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
    cache: CacheMode = CacheMode.none  # of keys and values
    # of cache=prefix: tokens recomputed behind the block; null = all
    horizon: int | None = not_negative(None)
    refresh_every: int | None = positive(None)  # steps between refreshes in a block; null = none
    weights: RolloutWeights = RolloutWeights.auto  # which weights the sampler uses
    compile: bool = False  # of the cached step, on a GPU with CUDA graphs; its cache stays
    max_rows: int = positive(256)  # rows decoded at the same time on one rank


@dataclass
class StaticConfig(RolloutConfig):
    """The same number of tokens each step."""


@dataclass
class ThresholdConfig(RolloutConfig):
    """All tokens that are sure enough."""

    threshold: float = share(0.9, zero=False)  # the least confidence


@dataclass
class FactorConfig(RolloutConfig):
    """The more tokens together, the surer each must be."""

    factor: float = positive(1.0)  # larger commits more tokens together


ROLLOUTS = Registry[RolloutConfig](
    "rollout", {"static": StaticConfig, "threshold": ThresholdConfig, "factor": FactorConfig}
)


@dataclass
class OptimConfig:
    lr: float = positive(MISSING, finite=True)  # learning rate
    beta1: float = share(0.9, one=False)  # of AdamW's mean of gradients
    beta2: float = share(0.999, one=False)  # of its mean of their squares
    eps: float = positive(1e-8, finite=True)  # in AdamW's denominator
    weight_decay: float = not_negative(0.0, finite=True)  # AdamW's, decoupled from the gradient
    max_grad_norm: float = positive(1.0, finite=True)  # longer gradients are shortened to it
    schedule: Schedule = Schedule.constant  # of the learning rate, after the warm-up
    warmup_steps: int = not_negative(0)  # optimizer steps
    rows_per_forward: int = positive(64)  # of one learner forward on one rank; lower saves memory


@dataclass
class CheckpointConfig:
    every: int = not_negative(20)  # steps between checkpoints; 0 = at a new best and at the end
    keep: int = positive(2)  # newest checkpoints kept beside the best


@dataclass
class SFTDataConfig:
    habit_share: float = share(0.0)  # of the demonstrations that show the task's bad habit
    batch_size: int = positive(128)  # demonstrations of an optimizer step
    log_every: int = positive(100)  # optimizer steps between lines of the log


@dataclass
class BaseConfig:
    """What every command shares."""

    model: ModelConfig = MISSING
    task: TaskConfig = MISSING
    rollout: RolloutConfig = MISSING
    cluster: ClusterConfig = MISSING
    seed: int = any_number(0)  # of every random number of the run
    output_dir: str = ""  # filled in when the run starts; choose it with hydra.run.dir


@dataclass
class RunConfig(BaseConfig):
    """`python -m drift.train`."""

    masking: MaskingConfig = MISSING
    objective: ObjectiveConfig = MISSING
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    optim: OptimConfig = MISSING
    tracking: TrackingConfig = MISSING
    data: TrainDataConfig = field(default_factory=TrainDataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    traces: TracePagesConfig = field(default_factory=TracePagesConfig)
    num_steps: int = positive(80)  # steps of rollout and update
    # end after this long in rollout, reward, update and sync
    max_training_s: float | None = positive(None)
    resume: str = "auto"  # auto = the newest of this folder | never | a checkpoint to begin at


@dataclass
class PlanSettings:
    """Of the machine that is planned for, and of what is compared."""

    prompt_length: int = positive(256)  # tokens of the longest prompt
    flops: float = positive(4e14, finite=True)  # FLOP/s that a GPU reaches
    gb_per_s: float = positive(50.0, finite=True)  # GB/s that a GPU sends
    gpu_gib: float = positive(80.0, finite=True)  # memory of a GPU
    over: str | None = None  # the setting whose values are compared; set by KEY=V1,V2
    values: list[str] = field(default_factory=list[str])  # its values; set by KEY=V1,V2


@dataclass
class PlanConfig(RunConfig):
    """`python -m drift.plan`."""

    plan: PlanSettings = field(default_factory=PlanSettings)


@dataclass
class SFTConfig(BaseConfig):
    """`python -m drift.sft`."""

    optim: OptimConfig = MISSING
    data: TrainDataConfig = field(default_factory=TrainDataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    sft: SFTDataConfig = field(default_factory=SFTDataConfig)
    num_steps: int = positive(1000)  # optimizer steps


@dataclass
class EvalRunConfig(BaseConfig):
    """`python -m drift.eval`."""

    tracking: TrackingConfig = MISSING
    checkpoints: list[str] = field(default_factory=list[str])  # empty = model.path
    data: DataConfig = field(default_factory=DataConfig)
    eval: GridConfig = field(default_factory=GridConfig)
    split: Split = Split.test  # whose problems are evaluated
    results: str | None = None  # a folder; null = the run's own, in a sweep the sweep's


@dataclass
class DoctorConfig(BaseConfig):
    """`python -m drift.doctor`."""

    objective: ObjectiveConfig = MISSING  # with optim: for the memory that training needs
    optim: OptimConfig = MISSING
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class ExportConfig:
    """`python -m drift.export`."""

    checkpoint: str = MISSING  # a checkpoint of a run, a policy or an adapter
    output: str = MISSING  # a new folder
    dtype: Dtype = Dtype.float32  # of the written weights
    max_shard_size: str = "5GB"  # of one safetensors file
    output_dir: str = ""  # as in BaseConfig


@dataclass
class ScoreConfig:
    """`python -m drift.score`."""

    task: TaskConfig = MISSING
    input: str = MISSING  # a data file whose records also have `completion`
    output: str = MISSING  # JSON lines
    data: DataConfig = field(default_factory=DataConfig)
    output_dir: str = ""  # as in BaseConfig


@dataclass
class GenerateConfig(BaseConfig):
    """`python -m drift.generate`."""

    prompt: str | None = None  # the prompt to complete
    input: str | None = None  # a file of prompts, one a line; - = standard input
    trace: str | None = None  # an HTML page to write
    chat: bool = True  # put the checkpoint's chat template, if it has one, around each prompt


@dataclass
class ToyConfig:
    """The lab's model: small enough that every answer can be counted."""

    num_words: int = positive(3)  # that it can write; the first of them is its stop token
    prompt_length: int = positive(2)  # tokens of the prompt
    # multiplies the head's random weights: how sure the network is
    sharpness: float = positive(2.0)
    fit_steps: int = not_negative(100)  # of training on random answers; 0 = random weights


@dataclass
class LabConfig:
    """`python -m drift.lab`."""

    rollout: RolloutConfig = MISSING
    toy: ToyConfig = field(default_factory=ToyConfig)
    toys: int = positive(8)  # random networks that are averaged
    draws: int = at_least(32, 2)  # of masks for each trajectory; an even number
    groups: int = at_least(2000, 2)  # of completions, for the table of objectives
    lag: float = not_negative(0.03)  # of the policy to the sampler, as a share of each weight
    page: str | None = None  # a Markdown file whose part between the marks is made anew
    seed: int = any_number(0)  # of the networks and of the draws
    output_dir: str = ""  # as in BaseConfig


MODELS = Registry("model", {"base": ModelConfig})
OPTIMS = Registry("optim", {"base": OptimConfig})
REGISTRIES: tuple[Registry[Any], ...] = (
    MODELS,
    TASKS,
    MASKINGS,
    ROLLOUTS,
    OBJECTIVES,
    CURRICULA,
    OPTIMS,
    TRACKINGS,
    CLUSTERS,
)
GROUPS: dict[str, dict[str, type]] = {known.group: known.schemas for known in REGISTRIES}
COMMANDS: dict[str, type] = {
    "run": RunConfig,
    "plan": PlanConfig,
    "sft": SFTConfig,
    "eval": EvalRunConfig,
    "doctor": DoctorConfig,
    "export": ExportConfig,
    "generate": GenerateConfig,
    "prepare": PrepareConfig,
    "score": ScoreConfig,
    "lab": LabConfig,
    "compare": CompareConfig,
    "track": TrackConfig,
}


def register() -> None:
    """Put every schema into Hydra's store, under `schema/<group>/<name>`."""
    store = ConfigStore.instance()
    for name, node in COMMANDS.items():
        store.store(group="schema", name=name, node=node)
    for group, schemas in GROUPS.items():
        for name, node in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=node)
