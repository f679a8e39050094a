"""A file of completions is graded into a file of scores."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from drift.common import terminal
from drift.common.errors import ConfigError, DataError
from drift.common.files import file_digest, whole_file, write_json
from drift.common.stats import Accuracy
from drift.common.types import Score
from drift.config.commands import ScoreConfig
from drift.tasks import build_task
from drift.tasks.records import Record, open_data, read_records
from drift.tasks.scoring import graded

log = logging.getLogger("drift")

NAMES = ("id", "task_id")  # fields of the input that are told again
BAD = "bad_record"
SHOWN = 20  # bad records named in the log; the output has every one


def output_line(record: Record, result: Score | DataError) -> dict[str, Any]:
    """What is written of one record."""
    named = {} if isinstance(record.value, DataError) else record.value
    line = {"line": record.line, **{name: named[name] for name in NAMES if name in named}}
    if isinstance(result, DataError):
        none = Score(reward=0.0, correct=False, answer=None, verdict=BAD)
        return {**line, **asdict(none), "reason": str(result)}
    return {**line, **asdict(result)}


class Summary:
    """Sums over the output lines."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()
        self.correct = 0

    def add(self, line: dict[str, Any]) -> None:
        self.verdicts[line["verdict"]] += 1
        if line["verdict"] != BAD:
            self.correct += line["correct"]
            for name, value in ({"reward": line["reward"]} | line["rewards"]).items():
                self.sums[name] += value

    def as_dict(self) -> dict[str, Any]:
        """Accuracy with its Wilson interval, the mean of each reward, counts of verdicts."""

        verdicts = dict(self.verdicts.most_common())
        bad = verdicts.pop(BAD, 0)
        accuracy = Accuracy(correct=self.correct, n=sum(verdicts.values()))
        means = {name: total / accuracy.n for name, total in self.sums.items()}
        return {
            **accuracy.as_dict(),
            "means": means,
            "verdicts": verdicts,
            "bad_records": bad,
        }


@contextmanager
def written(path: Path) -> Iterator[IO[str]]:
    """The output, opened for lines: whole at the end or not there; packed if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside, open_data(beside, "wt", encoding="utf-8") as file:
        yield file


def run(config: ScoreConfig) -> None:
    """Grade the input line by line; write the grades, then their summary beside them."""
    source, target = Path(config.input).expanduser(), Path(config.output).expanduser()
    if source.resolve() == target.resolve():
        raise ConfigError(f"output={target} is the input; choose another file")
    if target.exists() and not target.is_file():
        raise ConfigError(f"output={target} is no file; name the file to write")
    task = build_task(config.task, config.data.on_error)
    summary = Summary()
    total = sum(1 for _ in read_records(source)) if terminal.on_terminal() else 0
    with written(target) as file, terminal.bar("grading records", total) as bar:
        for record, result in graded(task, read_records(source), config.data.on_error):
            line = output_line(record, result)
            summary.add(line)
            file.write(json.dumps(line) + "\n")
            if isinstance(result, DataError) and summary.verdicts[BAD] <= SHOWN:
                log.warning("bad record: %s", result)
            bar.advance()
        figures = summary.as_dict()
        if not figures["n"]:
            raise DataError(f"{source} has no good record; {target} is not written")
    origin = {"task": config.task.name, "input": {"path": str(source), **file_digest(source)}}
    write_json(target.with_suffix(".summary.json"), origin | figures)
    log.info("accuracy %s", Accuracy(correct=summary.correct, n=figures["n"]))
    verdicts = ", ".join(f"{name} {count}" for name, count in figures["verdicts"].items())
    log.info("verdicts: %s; bad records: %d", verdicts, figures["bad_records"])
    log.info("wrote %s and %s", target, target.with_suffix(".summary.json").name)
