"""Grading without a model: completions of any origin, by a task's own grader."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from drift.common.errors import ConfigError, DataError
from drift.common.types import Example, Score
from drift.config import register
from drift.config.checks import validate
from drift.config.commands import ScoreConfig
from drift.config.compose import CONF, typed
from drift.config.data import OnError
from drift.config.explain import explain
from drift.tasks import Task, build_task
from drift.tasks.records import Record
from drift.tasks.reward import grade

CHUNK = 1024  # completions handed to the grader at once


def load_task(name: str, *overrides: str) -> Task:
    """The task that `task=<name>` chooses on the command line.

    Args:
        name: an option of conf/task.
        overrides: settings, for example "task.use_every_number=false".

    Raises:
        ConfigError: there is no such task or setting, or it cannot work.
    """
    register()
    given = [f"task={name}", "input=''", "output=''", *overrides]
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None  # of the caller
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config: ScoreConfig = typed(compose("score", overrides=given))
    except Exception as error:  # whatever Hydra raises while it composes
        raise ConfigError(explain(error)) from error
    finally:
        GlobalHydra.instance().hydra = outer
    validate(config)
    return build_task(config.task, config.data.on_error)


def score(task: Task | str, records: Iterable[Mapping[str, Any]]) -> list[Score]:
    """Grade completions.

    Args:
        task: a task, or its name in conf/task.
        records: each has the fields of the data format (data/README.md) and `completion`.

    Returns:
        One score for each record, in order.

    Raises:
        ConfigError: there is no such task.
        DataError: `record 3: field: reason`.
    """
    if isinstance(task, str):
        task = load_task(task)
    numbered = (
        Record(place=f"record {number}", line=number, value=dict(record))
        for number, record in enumerate(records, start=1)
    )
    results = [result for _, result in graded(task, numbered, OnError.refuse)]
    return [result for result in results if isinstance(result, Score)]


def graded(
    task: Task, records: Iterable[Record], on_error: OnError
) -> Iterator[tuple[Record, Score | DataError]]:
    """Each record with its score, in order; a chunk of them is graded at a time.

    Args:
        task: grades.
        records: with the task's own fields and `completion`.
        on_error: whether a bad record is refused, or comes back with its error.

    Raises:
        DataError: a record is bad and `on_error` is refuse.
    """
    records = iter(records)
    while chunk := list(islice(records, CHUNK)):
        found = [completion_of(task, record) for record in chunk]
        good = [item for item in found if not isinstance(item, DataError)]
        if len(good) < len(found) and on_error == OnError.refuse:
            raise next(item for item in found if isinstance(item, DataError))
        scores = iter(grade(task, [example for example, _ in good], [text for _, text in good]))
        for record, item in zip(chunk, found, strict=True):
            yield record, item if isinstance(item, DataError) else next(scores)


def completion_of(task: Task, record: Record) -> tuple[Example, str] | DataError:
    """The problem and the completion of a record, or what is wrong with it."""
    example = task.checked(record)
    if isinstance(example, DataError) or isinstance(record.value, DataError):
        return DataError(str(example))
    completion = record.value.get("completion")
    if isinstance(completion, str):  # an empty one is an answer too
        return example, completion
    fault = "missing" if "completion" not in record.value else f"{completion!r} is not a string"
    return DataError(f"{record.place}: completion: {fault}")
