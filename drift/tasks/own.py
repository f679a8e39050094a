"""Tasks that are not in this package: a Python file, or an entry point of another package."""

import importlib.util
import inspect
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path

from drift.common.errors import ConfigError
from drift.config.task import TaskConfig
from drift.tasks.base import Task

GROUP = "drift.tasks"  # of the entry points


def installed_tasks() -> list[str]:
    """Names of the entry points `drift.tasks` of the installed packages."""
    return sorted(entry_points(group=GROUP).names)


def installed_class(config: TaskConfig) -> type[Task]:
    """The task of the entry point that `task.name` names.

    Raises:
        ConfigError: it cannot be imported, or is no whole Task.
    """
    (entry, *_) = entry_points(group=GROUP, name=config.name)
    setting = f"task.name={config.name}: the entry point {entry.value}"
    try:
        found = entry.load()
    except Exception as error:  # whatever the other package raises
        raise ConfigError(f"{setting} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, Task)):
        raise ConfigError(f"{setting} is no subclass of drift.tasks.Task")
    return whole(found, setting)


def class_of_file(module: str) -> type[Task]:
    """The one Task that a Python file defines; the file is executed.

    Raises:
        ConfigError: there is no such file, it fails (with the line), or it defines no whole Task,
            or several.
    """
    path, setting = Path(module).expanduser(), f"task.module={module}"
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"{setting} is not a Python file; give the path of one, ending in .py")
    name = f"drift_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # dataclasses and pickle look their module up by name
    try:
        spec.loader.exec_module(loaded)
    except Exception as error:  # whatever a file of the user raises
        raise ConfigError(f"{setting}: {place_of(error, path)}") from error
    found = [
        member
        for _, member in inspect.getmembers(loaded, inspect.isclass)
        if issubclass(member, Task) and member.__module__ == name
    ]
    if len(found) != 1:
        names = ", ".join(member.__name__ for member in found) or "none"
        raise ConfigError(f"{setting} must define one subclass of drift.tasks.Task; found: {names}")
    return whole(found[0], setting)


def place_of(error: Exception, path: Path) -> str:
    """`my_task.py:7: ModuleNotFoundError: No module named 'chess'`, the line in the user's file."""
    inside = str(path.resolve())
    if isinstance(error, SyntaxError) and error.filename == inside:
        return f"{path}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == inside]
    place = f"{path}:{lines[-1]}" if lines else str(path)
    return f"{place}: {type(error).__name__}: {error}"


def whole(task: type[Task], setting: str) -> type[Task]:
    """The class itself, if every method that a task needs is there."""
    missing = sorted(task.__abstractmethods__)
    if missing:
        raise ConfigError(f"{setting}: {task.__name__} lacks the methods {', '.join(missing)}")
    return task
