"""Settings of the commands: what each takes beside its groups. Imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from drift.config.bounds import any_number, at_least, not_negative, positive, share
from drift.config.cluster import ClusterConfig
from drift.config.curriculum import CurriculumConfig
from drift.config.data import DataConfig, TrainDataConfig
from drift.config.masking import MaskingConfig
from drift.config.model import Dtype, ModelConfig
from drift.config.objective import ObjectiveConfig
from drift.config.optim import OptimConfig
from drift.config.rollout import RolloutConfig
from drift.config.task import Split, TaskConfig
from drift.config.tracking import TrackingConfig


@dataclass
class EvalConfig:
    """Evaluation along a run."""

    # steps between evaluations on the validation split; 0 = at the start only
    every: int = not_negative(20)
    max_examples: int | None = positive(None)  # problems of validation and of test; null = all


@dataclass
class GridConfig:
    """Evaluation by `python -m drift.eval`."""

    max_examples: int | None = positive(None)  # problems of the split; null = all
    samples: int = positive(1)  # completions of a problem; more need rollout.temperature above 0
    # problems between two saves: what an interruption costs at most
    chunk_size: int = positive(256)
    trace_problems: int = not_negative(8)  # problems of the trace page; 0 = no page


@dataclass
class TracePagesConfig:
    """Pages that show what a step sampled and what it was trained on: traces/step_*.html."""

    every: int = not_negative(20)  # steps between pages, the first step has one; 0 = no pages
    rows: int = positive(8)  # completions of a page


@dataclass
class CheckpointConfig:
    every: int = not_negative(20)  # steps between checkpoints; 0 = at a new best and at the end
    keep: int = positive(2)  # newest checkpoints kept beside the best


class RatioPer(StrEnum):
    row = "row"
    block = "block"  # of rollout.block_length


@dataclass
class SFTDataConfig:
    habit_share: float = share(0.0)  # of the demonstrations that show the task's bad habit
    batch_size: int = positive(128)  # demonstrations of an optimizer step
    ratio_per: RatioPer = RatioPer.row  # what one masking ratio is drawn for
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
    # the reward reads the words up to the first stop token, as a task's does; else all of them
    until_stop: bool = False


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


@dataclass
class CompareConfig:
    """`python -m drift.compare`."""

    tracking: TrackingConfig = MISSING  # without `sweep`: the MLflow experiment to read
    sweep: str | None = None  # a sweep's folder
    output: str | None = None  # a folder; null = compare/ in the sweep's, or outputs/compare/NAME
    output_dir: str = ""  # as in BaseConfig


@dataclass
class TrackConfig:
    """`python -m drift.track sync FOLDER`."""

    folder: str = MISSING  # of a run, or of several, as of a sweep
    tracking: TrackingConfig | None = None  # null = where each run's own settings say
    output_dir: str = ""  # as in BaseConfig


class Dataset(StrEnum):
    gsm8k = "gsm8k"
    math = "math"
    math500 = "math500"
    mbpp = "mbpp"
    humaneval = "humaneval"
    countdown = "countdown"
    sudoku = "sudoku"


@dataclass
class PrepareConfig:
    """`python -m drift.prepare`."""

    dataset: Dataset = MISSING  # which one: data/README.md has their sources
    source: str | None = None  # the raw file or a folder of them; null = from the hub
    output: str = MISSING  # a folder
    exclude: list[str] = field(default_factory=list[str])  # prepared files: not to be in train
    data: DataConfig = field(default_factory=DataConfig)
    output_dir: str = ""  # as in BaseConfig


COMMANDS: dict[str, type] = {
    "train": RunConfig,
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
