"""Settings of tasks: problems, prompts, graders, rewards. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from drift.config.bounds import any_number, at_least, between, not_negative, positive
from drift.config.registry import Registry


class LongPrompts(StrEnum):
    refuse = "refuse"
    drop = "drop"


class Truncated(StrEnum):
    keep = "keep"
    zero = "zero"


class EndSuppression(StrEnum):
    none = "none"
    commit = "commit"  # stop tokens are committed last in their block
    token = "token"  # stop tokens are not drawn: the whole canvas is filled


class Split(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"


@dataclass
class FilesConfig:
    """Data files of a task, one for each split; data/README.md has the format."""

    train: str | None = None  # a file; null = made from a seed, where the task can
    validation: str | None = None  # a file; null = made, or else held out from train
    test: str | None = None  # a file; null = made, where the task can


@dataclass
class RewardConfig:
    """Weights of the rewards that are added up; accuracy is counted apart from them."""

    answer: float = any_number(1.0, finite=True)  # weight of the task's own grade
    # weight of: one answer, where the task asks for it, nothing behind it
    format: float = any_number(0.0, finite=True)
    # weight of sudoku's share of empty cells that are right
    cells: float = any_number(0.0, finite=True)
    # subtracted for a full canvas, in proportion for a shorter answer
    length_penalty: float = not_negative(0.0, finite=True)
    # subtracted from a right answer of `rollout.steps` evaluations
    nfe_penalty: float = not_negative(0.0, finite=True)
    truncated: Truncated = Truncated.keep  # zero: no reward for a completion without a stop token


@dataclass
class TaskConfig:
    name: str = MISSING  # of the option, for the names of folders and runs
    # the canvas that an answer needs; rollout.gen_length takes it
    gen_length: int = positive(MISSING)
    block_length: int = positive(32)  # rollout.block_length takes it
    suppress_end: EndSuppression = EndSuppression.none  # rollout.suppress_end takes it
    prompt: str = MISSING  # template over the fields of an example
    system: str | None = None  # system prompt; null = none
    long_prompts: LongPrompts = LongPrompts.refuse  # that do not fit the model
    files: FilesConfig = field(default_factory=FilesConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)


@dataclass
class MathConfig(TaskConfig):
    workers: int = positive(2)  # processes of a rank that do the algebra
    # processor time of one answer; over it: verdict grader_timeout
    time_limit_s: float = positive(5.0, finite=True)
    hash_answer: bool = False  # without a box or <answer>, take what follows the last ####


@dataclass
class GeneratedTaskConfig(TaskConfig):
    seed: int = any_number(0)  # of the generated problems
    train_size: int = positive(20_000)  # generated problems
    validation_size: int = positive(300)  # generated problems
    test_size: int = positive(1_000)  # generated problems


@dataclass
class OwnTaskConfig(GeneratedTaskConfig):
    """A task of a Python file or of another package: docs/adding_a_task.md."""

    module: str | None = None  # the Python file; null = task.name is an entry point `drift.tasks`
    options: dict[str, Any] = field(default_factory=dict[str, Any])  # for the task to read


@dataclass
class CountdownConfig(GeneratedTaskConfig):
    num_numbers: int = between(3, 2, 6)  # of a generated problem
    max_number: int = positive(20)  # the largest of them
    max_target: int = positive(60)  # the largest result
    operators: str = "+-"  # used by generated problems; the grader reads + - * /
    use_every_number: bool = True  # an answer must use each number once; else it may leave some out


@dataclass
class SudokuConfig(GeneratedTaskConfig):
    min_empty: int = between(6, 1, 12)  # the fewest empty cells of a generated puzzle, which is 4x4
    max_empty: int = between(10, 1, 12)  # the most empty cells of a generated puzzle


@dataclass
class ArithmeticConfig(GeneratedTaskConfig):
    max_number: int = positive(20)  # the largest number in a problem
    num_changes: int = positive(2)  # gains and losses after the first number


@dataclass
class ReasoningGymConfig(GeneratedTaskConfig):
    train_size: int = positive(2_000)  # problems
    validation_size: int = positive(100)  # problems
    test_size: int = positive(300)  # problems
    dataset: str = "leg_counting"  # its name in reasoning-gym
    # of the data set; on the command line: +task.settings.NAME=VALUE
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    workers: int = positive(2)  # processes of a rank that score
    time_limit_s: float = positive(5.0, finite=True)  # processor time of one answer


@dataclass
class SandboxConfig:
    """Settings of the tasks that run programs."""

    workers: int = positive(2)  # programs at the same time, on each rank
    memory_mb: int = at_least(512, 128, "the interpreter alone takes some")  # of a program
    # CPU seconds of a test, where the problem does not say
    time_limit_s: float = positive(3.0, finite=True)
    partial: bool = False  # reward = the share of tests passed; else all or nothing
    allow_unsafe: bool = False  # run programs with limits alone where nothing isolates them


@dataclass
class CodeConfig(SandboxConfig, TaskConfig):
    pass


@dataclass
class OneLineCodeConfig(SandboxConfig, GeneratedTaskConfig):
    pass


TASKS = Registry[TaskConfig](
    "task",
    {
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
)


def task_problems(task: TaskConfig) -> Iterator[str]:
    """What cannot work in a task."""
    if isinstance(task, CountdownConfig) and (
        not task.operators or set(task.operators) - set("+-*")
    ):
        yield f"task.operators={task.operators!r} must be one or more of + - *"
    if task.reward.cells and not isinstance(task, SudokuConfig):
        yield f"task.reward.cells={task.reward.cells} does not apply to task={task.name}"
    if task.reward.nfe_penalty > 0 and task.reward.nfe_penalty >= task.reward.answer:
        yield (
            f"task.reward.nfe_penalty={task.reward.nfe_penalty} must be below "
            f"task.reward.answer={task.reward.answer}: a right answer, however slow, must be worth "
            "more than a wrong one"
        )
    if isinstance(task, SudokuConfig) and task.min_empty > task.max_empty:
        yield (
            f"task.min_empty={task.min_empty} and task.max_empty={task.max_empty} must "
            "satisfy min_empty <= max_empty"
        )


def offline_problems(task: TaskConfig) -> Iterator[str]:
    """What cannot work where given completions are graded."""
    yield from task_problems(task)
    reward = task.reward
    default = vars(RewardConfig())
    for key in ("length_penalty", "nfe_penalty", "truncated"):
        if (value := vars(reward)[key]) != default[key]:
            yield (
                f"task.reward.{key}={value} is for completions that are sampled; offline grading "
                f"knows no length, network evaluations or end of them: leave it {default[key]}"
            )
