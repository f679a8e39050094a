"""A task of one's own: the example of the docs as it stands there, entry points, and mistakes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import drift
from drift.common.errors import ConfigError, DataError, GradingError
from drift.common.types import Score
from drift.config.task import OwnTaskConfig, Split
from drift.tasks import Task, build_task
from drift.tasks.reward import grade
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "adding_a_task.md"
GUIDE = PAGE.read_text(encoding="utf-8")


def block(language: str) -> str:
    """The guide's code block of a language, without its indent."""
    indent, code = re.findall(rf"^( *)```{language}\n(.*?)^ *```", GUIDE, re.M | re.S)[0]
    return re.sub(rf"^{indent}", "", code, flags=re.M)


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    """A folder in which somebody followed the guide."""
    (tmp_path / "ones.py").write_text(block("python"))
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "ones.yaml").write_text(block("yaml"))
    return tmp_path


def test_the_guides_task_is_short() -> None:
    assert len(block("python").splitlines()) <= 40


def own(module: Path | str | None, name: str = "ones") -> Task:
    config = OwnTaskConfig(
        name=name, prompt="{bits}=", gen_length=8, module=None if module is None else str(module),
        options={"num_bits": 12}, train_size=30, validation_size=5, test_size=5,
    )  # fmt: skip
    return build_task(config)


def test_the_guides_task_has_problems_and_grades_them(guide: Path) -> None:
    task = own(guide / "ones.py")
    assert [len(task.examples(split)) for split in Split] == [30, 5, 5]
    example = task.example({"bits": "0110"})
    assert task.score(example, "\\boxed{2}").correct
    path = guide / "train.jsonl"
    path.write_text('{"bits": "01"}\n{"bits": "02"}\n{"bit": "01"}\n')
    task.config.files.train = str(path)
    with pytest.raises(DataError, match=rf"^{path}:2: bits: '02' is not a text of 0 and 1$"):
        task.examples(Split.train)
    path.write_text('{"bit": "01"}\n')
    with pytest.raises(DataError, match=rf"^{path}:1: bits: missing$"):
        task.examples(Split.train)


GOOD = Score(reward=1, correct=True, answer="2", verdict="pass", rewards={"steps": 0.5})


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (None, "None is no Score"),
        (replace(GOOD, reward=float("nan")), "reward=nan is not a finite number"),
        (replace(GOOD, reward="0.5"), "reward='0.5' is not a finite number"),
        (replace(GOOD, rewards={"steps": float("inf")}), "steps=inf is not a finite number"),
        (replace(GOOD, correct=None), "correct=None is neither True nor False"),
        (replace(GOOD, rewards={}), r"rewards has the names \[\], of others \['steps'\]"),
    ],
)
def test_a_score_that_is_none_is_named_with_its_problem(
    guide: Path, bad: object, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = own(guide / "ones.py")
    example, given = task.example({"bits": "0110"}), iter([GOOD, GOOD, GOOD, bad])
    monkeypatch.setattr(task, "score", lambda *_: next(given))
    assert [score.reward for score in grade(task, [example] * 2, ["", ""])] == [1, 1]
    with pytest.raises(GradingError, match=f"^task=ones: the score of ones:0110: {fault}$"):
        grade(task, [example] * 2, ["", ""])


def test_a_grader_that_raises_is_named_with_its_line(
    guide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, code = guide / "ones.py", block("python")
    (body,) = re.findall(r"^    def score\(.*\n", code, re.M)
    path.write_text(code.replace(body, f"{body}        json_of({{}}['a'])\n"))
    number = path.read_text().splitlines().index("        json_of({}['a'])") + 1
    task = own(path)
    example = task.example({"bits": "0110"})
    with pytest.raises(GradingError) as caught:
        grade(task, [example] * 2, ["", ""])
    line = f"task=ones: the score of ones:0110: {path}:{number}: NameError: name 'json_of'"
    assert str(caught.value).startswith(line)
    assert isinstance(caught.value.__cause__, NameError)
    monkeypatch.setattr(task, "score_all", lambda *_: 1 / 0)
    with pytest.raises(GradingError, match=r"^task=ones: its scores: .*: ZeroDivisionError: div"):
        grade(task, [example] * 2, ["", ""])


def test_the_same_without_a_yaml_file(guide: Path) -> None:
    task = drift.load_task(
        "own", f"task.module={guide}/ones.py", "task.name=ones", "task.prompt='{bits}='",
        "+task.options.num_bits=16",
    )  # fmt: skip
    assert len(task.examples(Split.test)) == 1000
    with pytest.raises(ConfigError, match=r"a new one is written \+task\.options\.num_bits=VALUE"):
        drift.load_task("own", "task.options.num_bits=12")


def install(folder: Path, target: str) -> None:
    """What pip leaves behind of a package with an entry point."""
    info = folder / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[drift.tasks]\nones = {target}\n")


def test_a_task_of_an_installed_package_is_found(
    guide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (guide / "ones.py").rename(guide / "package_of_ones.py")
    monkeypatch.syspath_prepend(guide)
    install(guide, "package_of_ones:Ones")
    assert type(own(None)).__name__ == "Ones"
    with pytest.raises(ConfigError, match=r"task=chess is no task .*\(those: ones\)"):
        own(None, "chess")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:Ones", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("json:loads", "is no subclass of drift.tasks.Task"),
        ("drift.tasks:Task", "Task lacks the methods example, score"),
    ],
)
def test_a_broken_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, message: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, target)
    with pytest.raises(ConfigError) as caught:
        own(None)
    assert str(caught.value).startswith(f"task.name=ones: the entry point {target}")
    assert message in str(caught.value)


HEAD = "from drift.tasks import Task\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = (\n", "{path}:1: '(' was never closed"),
        (HEAD + "import chess_engine\n", "{path}:2: ModuleNotFoundError: No module named"),
        (HEAD + "def f():\n    return 1 / 0\nf()\n", "{path}:3: ZeroDivisionError: division by"),
        (HEAD, "must define one subclass of drift.tasks.Task; found: none"),
        (HEAD + "class A(Task): ...\nclass B(Task): ...\n", "found: A, B"),
        (
            HEAD + "class A(Task):\n    def example(self, record): ...\n",
            "A lacks the methods score",
        ),
    ],
)
def test_a_file_that_is_no_task_is_named_with_its_line(
    tmp_path: Path, code: str, message: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(ConfigError) as caught:
        own(path)
    assert str(caught.value).startswith(f"task.module={path}")
    assert message.format(path=path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.py", "data.jsonl", "."])
def test_a_module_must_be_a_python_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "data.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"is not a Python file; give the path of one"):
        own(tmp_path / name)


def test_no_file_and_no_package_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"set task\.module=FILE\.py$"):
        own(None, "own")
