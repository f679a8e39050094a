"""Problems from data files: bad records left out, validation held out, nothing generated twice."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from drift.common.errors import ConfigError, DataError
from drift.common.types import Example, Score
from drift.config.data import OnError
from drift.config.task import CountdownConfig, FilesConfig, Split, TaskConfig
from drift.tasks import Task, build_task
from drift.tasks.base import held_out, split_of
from drift.tasks.records import string


class Echo(Task):
    """Reads its problems from files, as math and code do."""

    def example(self, record: dict[str, object]) -> Example:
        question = string(record, "question")
        return Example(key=question, prompt=self.render(record), fields=record)

    def score(self, example: Example, text: str) -> Score:
        correct = text == example.fields["question"]
        return Score(reward=float(correct), correct=correct, answer=text, verdict="pass")


def echo(**files: str) -> Echo:
    files_ = FilesConfig(**files)
    return Echo(TaskConfig(name="echo", prompt="{question}", gen_length=8, files=files_))


def questions(path: Path, *texts: str | None) -> str:
    """A data file; None makes a record without its field."""
    records = [{} if text is None else {"question": text} for text in texts]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def keys(task: Task, split: Split) -> list[str]:
    return [example.key for example in task.examples(split)]


# Bad records


def test_a_bad_record_is_refused_and_nothing_behind_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    questions(file, "a", None, *["b"] * 10_000)
    file.write_bytes(file.read_bytes() + b"\xff")  # no UTF-8, but far behind
    with pytest.raises(DataError, match=rf"^{file}:2: question: missing$"):
        echo(train=str(file)).examples(Split.train)


def test_bad_records_are_left_out_counted_and_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "test.jsonl"
    questions(file, "a", None, "b")
    file.write_text(file.read_text() + "{\n[]\n")
    task = echo(test=str(file))
    task.on_error = OnError.skip
    with caplog.at_level(logging.WARNING):
        assert keys(task, Split.test) == ["a", "b"]
        assert keys(task, Split.test) == ["a", "b"]
    reasons = [f"{file}:2: question: missing", f"{file}:4: not JSON", f"{file}:5: a record is a"]
    assert [said.startswith(reason) for said, reason in zip(task.skipped, reasons, strict=True)]
    assert caplog.messages[0].startswith(f"3 of the 5 records of {file} are bad and were left out")
    assert [line.strip() for line in caplog.messages[1:]] == task.skipped


def test_only_so_many_bad_records_are_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = echo(test=questions(tmp_path / "test.jsonl", "a", *[None] * 30))
    task.on_error = OnError.skip
    with caplog.at_level(logging.WARNING):
        task.examples(Split.test)
    assert len(caplog.messages) == 22
    assert caplog.messages[-1].strip() == "and 10 more"
    assert len(task.skipped) == 30


def test_a_file_of_bad_records_alone_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    task = echo(test=questions(file, None, None))
    task.on_error = OnError.skip
    with pytest.raises(DataError, match=f"{file} has no good record; the first fault: {file}:1: "):
        task.examples(Split.test)


def test_a_missing_prepared_file_names_the_command(tmp_path: Path) -> None:
    file = tmp_path / "gsm8k" / "train.jsonl"
    with pytest.raises(DataError) as caught:
        echo(train=str(file)).examples(Split.train)
    command = "python -m drift.prepare dataset=gsm8k"
    assert str(caught.value) == f"{file}: no such data file; make it with `{command}`"


# Validation held out from train


def test_without_a_validation_file_a_part_of_train_is_held_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"question {i}" for i in range(200)]
    train = questions(tmp_path / "train.jsonl", *names, *names[:50])
    test = questions(tmp_path / "test.jsonl", "another")
    task = echo(train=train, test=test)
    with caplog.at_level(logging.INFO):
        parts = {split: keys(task, split) for split in Split}
    distinct = set(parts[Split.validation])
    assert len(distinct) == 14  # 7 % of 200
    assert not distinct & set(parts[Split.train])  # both copies of a problem are held out
    assert sorted(parts[Split.train] + parts[Split.validation]) == sorted(names + names[:50])
    assert parts[Split.test] == ["another"]
    said = f"no task.files.validation: 14 of the 200 problems of {train} are held out"
    assert caplog.messages == [said]
    shuffled = questions(tmp_path / "shuffled.jsonl", *reversed(names))
    assert set(keys(echo(train=shuffled), Split.validation)) == distinct


def test_a_validation_file_leaves_train_whole(tmp_path: Path) -> None:
    train = questions(tmp_path / "train.jsonl", "a", "b", "c")
    task = echo(train=train, validation=questions(tmp_path / "validation.jsonl", "d"))
    assert keys(task, Split.train) == ["a", "b", "c"]
    assert keys(task, Split.validation) == ["d"]


@pytest.mark.parametrize(
    ("num_problems", "size"), [(0, 0), (1, 0), (2, 1), (28, 1), (29, 2), (7473, 500), (3000, 210)]
)
def test_how_many_are_held_out(num_problems: int, size: int) -> None:
    assert len(held_out(str(i) for i in range(num_problems))) == size


def test_one_problem_cannot_be_split(tmp_path: Path) -> None:
    task = echo(train=questions(tmp_path / "train.jsonl", "a", "a"))
    with pytest.raises(DataError, match=r"one problem only.*set task\.files\.validation=FILE"):
        task.examples(Split.train)


# Generated problems beside data files


def countdown(**files: str) -> Task:
    sizes: dict[str, Any] = {"train_size": 300, "validation_size": 30, "test_size": 60}
    return build_task(
        CountdownConfig(
            name="countdown", prompt="{numbers}={target}", gen_length=16, max_number=12,
            files=FilesConfig(**files), **sizes,
        )
    )  # fmt: skip


def test_generated_problems_are_never_those_of_a_data_file(tmp_path: Path) -> None:
    made = {split: countdown().examples(split) for split in Split}
    file = tmp_path / "test.jsonl"
    leaked = [*made[Split.train][:100], *made[Split.validation][:10]]
    file.write_text("\n".join(json.dumps(example.fields) for example in leaked))
    task = countdown(test=str(file))
    given = {example.key for example in leaked}
    assert set(keys(task, Split.test)) == given
    for split in (Split.train, Split.validation):
        assert len(task.examples(split)) == len(made[split])
        assert not set(keys(task, split)) & given
        assert all(split_of(key) == split for key in keys(task, split))


def test_a_prompt_without_the_problem_is_refused(tmp_path: Path) -> None:
    task = echo(train=questions(tmp_path / "train.jsonl", "one", "two"))
    task.config.prompt = "hello {{question}}"
    with pytest.raises(ConfigError, match=r"'hello {{question}}' is the same .*: \['question'\]$"):
        task.examples(Split.train)
