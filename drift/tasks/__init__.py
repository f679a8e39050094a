"""Verifiable tasks. A task is a file and a line here; its key is the name in conf/task."""

from drift.common.errors import ConfigError
from drift.config import OwnTaskConfig, Split, TaskConfig
from drift.config.data import OnError
from drift.tasks.arithmetic import Arithmetic
from drift.tasks.base import Task
from drift.tasks.code import Code
from drift.tasks.countdown import Countdown
from drift.tasks.math import Math
from drift.tasks.one_line_code import OneLineCode
from drift.tasks.own import class_of_file, installed_class, installed_tasks
from drift.tasks.reasoning_gym import ReasoningGym
from drift.tasks.sudoku import Sudoku

TASKS: dict[str, type[Task]] = {
    "countdown": Countdown,
    "sudoku": Sudoku,
    "arithmetic": Arithmetic,
    "math": Math,
    "gsm8k": Math,
    "math500": Math,
    "reasoning_gym": ReasoningGym,
    "code": Code,
    "mbpp": Code,
    "humaneval": Code,
    "one_line_code": OneLineCode,
}

__all__ = ["TASKS", "Split", "Task", "build_task"]


def build_task(config: TaskConfig, on_error: OnError = OnError.refuse) -> Task:
    """The task that `task.name` chooses, or the one of `task.module`.

    Args:
        config: the task's settings.
        on_error: what the task does with a bad record of its data files.
    """
    task = task_class(config)(config)
    task.on_error = on_error
    return task


def task_class(config: TaskConfig) -> type[Task]:
    own = isinstance(config, OwnTaskConfig)
    if own and config.module is not None:
        return class_of_file(config.module)
    if config.name in TASKS and not own:
        return TASKS[config.name]
    installed = installed_tasks()
    if config.name in installed:
        return installed_class(config)
    if own:
        known = ", ".join(installed) or "none"
        raise ConfigError(
            f"task={config.name} is no task of an installed package (those: {known}); for a file "
            "of your own set task.module=FILE.py"
        )
    raise ConfigError(
        f"task.name={config.name} has no grader in this version (of your own: task=own "
        f"task.module=FILE.py); with one: {', '.join([*TASKS, *installed])}"
    )
