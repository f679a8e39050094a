"""Every setting of a run: one dataclass for each config group, and RunConfig over them.

A default stands here or in conf/, never in the code that reads it. This module imports no torch.
Checks that span groups are in validate.py.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from drift.config.bounds import any_number, at_least, not_negative, positive, share
from drift.config.cluster import (
    ClusterConfig as ClusterConfig,
    SlurmConfig as SlurmConfig,
    SubmititConfig as SubmititConfig,
)
from drift.config.curriculum import (
    CurriculumConfig as CurriculumConfig,
    InformativeConfig as InformativeConfig,
    PromptOrder as PromptOrder,
)
from drift.config.data import DataConfig, PrepareConfig, TrainDataConfig
from drift.config.eval import (
    EvalConfig as EvalConfig,
    GridConfig as GridConfig,
    TracePagesConfig as TracePagesConfig,
)
from drift.config.masking import (
    AllConfig as AllConfig,
    BlockConfig as BlockConfig,
    CoupledConfig as CoupledConfig,
    CoupledRatioConfig as CoupledRatioConfig,
    ElboConfig as ElboConfig,
    LeftToRightConfig as LeftToRightConfig,
    MaskingConfig as MaskingConfig,
    MaskingStrategy as MaskingStrategy,
    QuadratureConfig as QuadratureConfig,
    RandomConfig as RandomConfig,
    ReplayConfig as ReplayConfig,
    SequentialConfig as SequentialConfig,
    Times as Times,
    TraceConfig as TraceConfig,
)
from drift.config.objective import (
    AdvantageEstimator as AdvantageEstimator,
    Importance as Importance,
    KLEstimator as KLEstimator,
    Level as Level,
    Normalization as Normalization,
    ObjectiveConfig as ObjectiveConfig,
    PolicyLoss as PolicyLoss,
    RewardControl as RewardControl,
    ValueConfig as ValueConfig,
)
from drift.config.task import (
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
    CompareConfig as CompareConfig,
    MlflowConfig as MlflowConfig,
    TrackConfig as TrackConfig,
    TrackingBackend as TrackingBackend,
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


class RemaskingRule(StrEnum):
    static = "static"  # the same number each step
    threshold = "threshold"  # all that are sure enough
    factor = "factor"  # the more together, the surer each


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
    remasking: RemaskingRule = MISSING  # which drawn tokens a denoising step commits
    # of remasking=threshold: the least confidence
    threshold: float | None = share(None, zero=False)
    # of remasking=factor: larger commits more tokens together
    factor: float | None = positive(None)
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
    # steps between refreshes inside a block; null = none
    refresh_every: int | None = positive(None)
    weights: RolloutWeights = RolloutWeights.auto  # which weights the sampler uses
    compile: bool = False  # of the cached step, on a GPU with CUDA graphs; its cache stays
    max_rows: int = positive(256)  # rows decoded at the same time on one rank


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
    # rows of one learner forward on one rank; lower it to save memory
    rows_per_forward: int = positive(64)


@dataclass
class CheckpointConfig:
    every: int = not_negative(20)  # steps between checkpoints; 0 = at a new best and at the end
    keep: int = positive(2)  # newest checkpoints kept beside the best


@dataclass
class SFTDataConfig:
    # of the demonstrations, the share that shows the task's bad habit
    habit_share: float = share(0.0)
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
    # between the policy and the one that sampled, as a share of each weight
    lag: float = not_negative(0.03)
    page: str | None = None  # a Markdown file whose part between the marks is made anew
    seed: int = any_number(0)  # of the networks and of the draws
    output_dir: str = ""  # as in BaseConfig


GROUPS: dict[str, dict[str, type]] = {
    "model": {"base": ModelConfig},
    "task": {
        "base": TaskConfig,
        "countdown": CountdownConfig,
        "sudoku": SudokuConfig,
        "arithmetic": ArithmeticConfig,
        "math": MathConfig,
        "reasoning_gym": ReasoningGymConfig,
        "own": OwnTaskConfig,
        "code": CodeConfig,
        "one_line_code": OneLineCodeConfig,
    },
    "masking": {
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
    "rollout": {"base": RolloutConfig},
    "curriculum": {"base": CurriculumConfig, "informative": InformativeConfig},
    "objective": {"base": ObjectiveConfig},
    "optim": {"base": OptimConfig},
    "cluster": {"base": ClusterConfig, "submitit": SubmititConfig, "slurm": SlurmConfig},
    "tracking": {"base": TrackingConfig, "mlflow": MlflowConfig, "wandb": WandbConfig},
}


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
