"""Verifiable tasks. A task is a file and a line here; its key is the name in conf/task."""

from drift.config import Split, TaskConfig
from drift.errors import ConfigError
from drift.tasks.base import Task
from drift.tasks.code import Code
from drift.tasks.countdown import Countdown
from drift.tasks.one_line_code import OneLineCode
from drift.tasks.sudoku import Sudoku

TASKS: dict[str, type[Task]] = {
    "countdown": Countdown,
    "sudoku": Sudoku,
    "code": Code,
    "mbpp": Code,
    "humaneval": Code,
    "one_line_code": OneLineCode,
}

__all__ = ["TASKS", "Split", "Task", "build_task"]


def build_task(config: TaskConfig) -> Task:
    """The task that `task.name` chooses."""
    if config.name not in TASKS:
        raise ConfigError(
            f"task.name={config.name} has no grader in this version; with one: {', '.join(TASKS)}"
        )
    return TASKS[config.name](config)
