"""Every setting of a run: one dataclass for each config group, and RunConfig over them.

A default stands here or in conf/, never in the code that reads it. This module imports no torch.
Checks that span groups are in validate.py.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


class FamilyName(StrEnum):
    llada = "llada"
    dream = "dream"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class LongPrompts(StrEnum):
    refuse = "refuse"
    drop = "drop"


class MaskingStrategy(StrEnum):
    sequential = "sequential"
    random = "random"
    coupled = "coupled"
    all = "all"


class RemaskingRule(StrEnum):
    static = "static"
    threshold = "threshold"


class AdvantageEstimator(StrEnum):
    group_normalized = "group_normalized"
    group_centered = "group_centered"
    leave_one_out = "leave_one_out"


class PolicyLoss(StrEnum):
    reinforce = "reinforce"
    ppo_clip = "ppo_clip"


class KLEstimator(StrEnum):
    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class Normalization(StrEnum):
    token = "token"
    sample = "sample"


class RewardControl(StrEnum):
    none = "none"
    shuffle = "shuffle"


class Truncated(StrEnum):
    keep = "keep"
    zero = "zero"


class Schedule(StrEnum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Split(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"


class TrackingBackend(StrEnum):
    mlflow = "mlflow"
    off = "off"


@dataclass
class LoraConfig:
    rank: int = 0  # 0: every weight is trained
    alpha: float = 16.0  # the update is scaled by alpha / rank
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj"]
    )


@dataclass
class ModelConfig:
    name: str = MISSING
    family: FamilyName = MISSING
    path: str = MISSING  # a folder, or a name on the Hugging Face hub
    revision: str | None = None
    dtype: Dtype = Dtype.bfloat16  # of the computation; the trained weights stay float32
    lora: LoraConfig = field(default_factory=LoraConfig)
    gradient_checkpointing: bool = False  # less memory, about a third more time in updates
    lr: float = MISSING  # a learning rate known to work for RL on this model; optim.lr takes it


@dataclass
class FilesConfig:
    """Data files of a task, one for each split; null = made from a seed, where the task can."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None


@dataclass
class RewardConfig:
    """Weights of the rewards that are added up; accuracy is counted apart from them."""

    answer: float = 1.0  # of the task's own grade
    format: float = 0.0  # of: exactly one answer, where the task asks for it, and nothing behind it
    cells: float = 0.0  # sudoku: of the share of empty cells that are right
    length_penalty: float = 0.0  # subtracted for a full canvas, in proportion for a shorter answer
    truncated: Truncated = Truncated.keep  # zero: no reward for a completion without a stop token


@dataclass
class TaskConfig:
    name: str = MISSING
    gen_length: int = MISSING  # the canvas that an answer needs; rollout.gen_length takes it
    block_length: int = 32  # rollout.block_length takes it
    prompt: str = MISSING  # template over the fields of an example
    system: str | None = None
    long_prompts: LongPrompts = LongPrompts.refuse
    files: FilesConfig = field(default_factory=FilesConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)


@dataclass
class MathConfig(TaskConfig):
    workers: int = 2  # processes of a rank that do the algebra
    time_limit_s: float = 5.0  # processor time of one answer; over it: verdict grader_timeout
    hash_answer: bool = False  # without a box or <answer>, take what follows the last ####


@dataclass
class GeneratedTaskConfig(TaskConfig):
    seed: int = 0
    train_size: int = 20_000
    validation_size: int = 300
    test_size: int = 1_000


@dataclass
class CountdownConfig(GeneratedTaskConfig):
    num_numbers: int = 3
    max_number: int = 20
    max_target: int = 60
    operators: str = "+-"  # used by generated problems; the grader reads + - * /
    use_every_number: bool = True


@dataclass
class SudokuConfig(GeneratedTaskConfig):
    min_empty: int = 6  # of generated puzzles, which are 4x4
    max_empty: int = 10


@dataclass
class ArithmeticConfig(GeneratedTaskConfig):
    max_number: int = 20
    num_changes: int = 2  # gains and losses after the first number


@dataclass
class ReasoningGymConfig(GeneratedTaskConfig):
    train_size: int = 2_000
    validation_size: int = 100
    test_size: int = 300
    dataset: str = "leg_counting"  # its name in reasoning-gym
    # of the data set; on the command line: +task.settings.NAME=VALUE
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    workers: int = 2  # processes of a rank that score
    time_limit_s: float = 5.0  # processor time of one answer


@dataclass
class MaskingConfig:
    strategy: MaskingStrategy = MISSING
    num_views: int = MISSING


@dataclass
class SequentialConfig(MaskingConfig):
    """RLDF's masking (arXiv 2605.25638)."""

    num_views: int = 4
    temperature: float = 1.0  # of the choice of steps: .inf = uniform, 0 = the most surprising
    low_prob_threshold: float = 0.6  # masked later tokens score if as likely; 1 = none, 0 = all


@dataclass
class RandomConfig(MaskingConfig):
    num_views: int = 4
    ratio: float = 0.3


@dataclass
class CoupledConfig(MaskingConfig):
    num_views: int = 2


@dataclass
class AllConfig(MaskingConfig):
    num_views: int = 1


@dataclass
class RolloutConfig:
    remasking: RemaskingRule = MISSING
    threshold: float | None = None  # of remasking=threshold
    prompts_per_step: int = 32  # over all ranks
    group_size: int = 8  # completions of one prompt
    gen_length: int = MISSING
    block_length: int = MISSING
    steps: int = MISSING  # denoising steps for the whole canvas: the most that are taken
    temperature: float = 1.0
    max_rows: int = 256  # rows decoded at the same time on one rank


@dataclass
class ObjectiveConfig:
    policy_loss: PolicyLoss = PolicyLoss.reinforce
    num_updates: int = 1  # optimizer steps on one rollout
    clip_low: float = 0.2
    clip_high: float = 0.2
    advantage: AdvantageEstimator = AdvantageEstimator.group_normalized
    normalization: Normalization = Normalization.sample
    kl_coef: float = 0.0  # 0: no reference model is loaded
    kl_estimator: KLEstimator = KLEstimator.k3
    entropy_coef: float = 0.0
    reward_control: RewardControl = RewardControl.none


@dataclass
class OptimConfig:
    lr: float = MISSING
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    schedule: Schedule = Schedule.constant
    warmup_steps: int = 0  # optimizer steps
    rows_per_forward: int = 64  # rows of one learner forward on one rank; lower it to save memory


@dataclass
class ClusterConfig:
    name: str = MISSING
    threads: int | None = None  # CPU threads of a process; null = torch's choice


@dataclass
class TrackingConfig:
    backend: TrackingBackend = MISSING
    uri: str = "sqlite:///outputs/mlflow.db"
    experiment: str = "drift"


@dataclass
class EvalConfig:
    every: int = 20  # steps between evaluations on the validation split; 0 = at the start only
    max_examples: int | None = None  # of the validation and of the test split; null = all


@dataclass
class CheckpointConfig:
    every: int = 20  # steps between checkpoints; 0 = at a new best and at the end
    keep: int = 2  # newest checkpoints kept beside the best


@dataclass
class SFTDataConfig:
    habit_share: float = 0.0  # of the demonstrations, the share that shows the task's bad habit
    batch_size: int = 128
    log_every: int = 100


@dataclass
class BaseConfig:
    """What every command shares."""

    model: ModelConfig = MISSING
    task: TaskConfig = MISSING
    rollout: RolloutConfig = MISSING
    cluster: ClusterConfig = MISSING
    eval: EvalConfig = field(default_factory=EvalConfig)
    seed: int = 0
    output_dir: str = ""  # filled in when the run starts; choose it with hydra.run.dir


@dataclass
class RunConfig(BaseConfig):
    """`python -m drift.train`."""

    masking: MaskingConfig = MISSING
    objective: ObjectiveConfig = MISSING
    optim: OptimConfig = MISSING
    tracking: TrackingConfig = MISSING
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    num_steps: int = 80
    resume: str = "auto"  # auto | never | a checkpoint's folder


@dataclass
class SFTConfig(BaseConfig):
    """`python -m drift.sft`."""

    optim: OptimConfig = MISSING
    sft: SFTDataConfig = field(default_factory=SFTDataConfig)
    num_steps: int = 1000


@dataclass
class EvalRunConfig(BaseConfig):
    """`python -m drift.eval`."""

    checkpoints: list[str] = field(default_factory=list[str])
    split: Split = Split.test


@dataclass
class DoctorConfig(BaseConfig):
    """`python -m drift.doctor`."""


@dataclass
class ExportConfig:
    """`python -m drift.export`."""

    checkpoint: str = MISSING  # a checkpoint of a run, a policy or an adapter
    output: str = MISSING  # a new folder
    dtype: Dtype = Dtype.float32
    max_shard_size: str = "5GB"
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
    },
    "masking": {
        "sequential": SequentialConfig,
        "random": RandomConfig,
        "coupled": CoupledConfig,
        "all": AllConfig,
    },
    "rollout": {"base": RolloutConfig},
    "objective": {"base": ObjectiveConfig},
    "optim": {"base": OptimConfig},
    "cluster": {"base": ClusterConfig},
    "tracking": {"base": TrackingConfig},
}


def register() -> None:
    """Put every schema into Hydra's store, under `schema/<group>/<name>`."""
    store = ConfigStore.instance()
    for name, node in (
        ("run", RunConfig),
        ("sft", SFTConfig),
        ("eval", EvalRunConfig),
        ("doctor", DoctorConfig),
        ("export", ExportConfig),
    ):
        store.store(group="schema", name=name, node=node)
    for group, schemas in GROUPS.items():
        for name, node in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=node)
