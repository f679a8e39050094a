"""Verifiable tasks. A task is a file and a line here; the class of its settings chooses it."""

from collections.abc import Callable

from drift.common.errors import ConfigError
from drift.config.data import OnError
from drift.config.task import (
    TASKS,
    ArithmeticConfig,
    CodeConfig,
    CountdownConfig,
    MathConfig,
    OneLineCodeConfig,
    OwnTaskConfig,
    ReasoningGymConfig,
    Split,
    SudokuConfig,
    TaskConfig,
)
from drift.tasks.arithmetic import Arithmetic
from drift.tasks.base import Task
from drift.tasks.code import Code
from drift.tasks.countdown import Countdown
from drift.tasks.math import Math
from drift.tasks.one_line_code import OneLineCode
from drift.tasks.own import class_of_file, installed_class, installed_tasks
from drift.tasks.reasoning_gym import ReasoningGym
from drift.tasks.sudoku import Sudoku

CLASSES: dict[type[TaskConfig], type[Task]] = {
    CountdownConfig: Countdown,
    SudokuConfig: Sudoku,
    ArithmeticConfig: Arithmetic,
    MathConfig: Math,
    ReasoningGymConfig: ReasoningGym,
    CodeConfig: Code,
    OneLineCodeConfig: OneLineCode,
}
for schema, task in CLASSES.items():
    TASKS.implements(schema)(task)

__all__ = ["Split", "Task", "build_task"]


def build_task(config: TaskConfig, on_error: OnError = OnError.refuse) -> Task:
    """The task of the settings' class, of the file `task.module` or of the entry point `task.name`.

    Args:
        config: the task's settings.
        on_error: what the task does with a bad record of its data files.
    """
    task = task_class(config)(config)
    task.on_error = on_error
    return task


def task_class(config: TaskConfig) -> Callable[[TaskConfig], Task]:
    if not isinstance(config, OwnTaskConfig):
        return TASKS.function(config)
    if config.module is not None:
        return class_of_file(config.module)
    installed = installed_tasks()
    if config.name in installed:
        return installed_class(config)
    known = ", ".join(installed) or "none"
    raise ConfigError(
        f"task={config.name} is no task of an installed package (those: {known}); for a file "
        "of your own set task.module=FILE.py"
    )
