"""Every command that README and docs show is run: here, or by the test or script that is named.

WAYS says how, by the first pattern that is found in the command. A command line that a page gets
anew is run as it stands, with settings that make it small, unless a line of WAYS knows better.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from drift.cluster.rendezvous import free_port
from tests import forkserver
from tests.conftest import ROOT
from tests.shown import PAGES, Shown, commands_of

SUDOKU = {
    "puzzle": "3102200002100320", "ground_truth_answer": "3142243142131324",
    "completion": "<answer>3142243142131324</answer>",
}  # fmt: skip
MBPP = {
    "task_id": 601, "text": "Add two numbers.", "code": "def add(a, b):\n    return a + b",
    "test_list": ["assert add(1, 2) == 3"], "test_setup_code": "", "challenge_test_list": [],
}  # fmt: skip
QUESTION = {"question": "What is 1/2 + 1/4?", "ground_truth_answer": "3/4"}
SMALL = {  # what makes a command small
    "train": ("debug=smoke", "num_steps=1", "eval.max_examples=4", "task.train_size=64"),
    "sft": ("num_steps=2", "sft.batch_size=4", "task.train_size=50", "eval.max_examples=4"),
    "eval": ("eval.max_examples=4", "tracking=off"),
    "lab": ("toys=1", "draws=2", "groups=20", "toy.num_words=2", "rollout.gen_length=2",
            "rollout.block_length=2", "rollout.steps=2"),
}  # fmt: skip
OFF = ("tracking=off",)
ONE_RANK = {"WORLD_SIZE": "1", "RANK": "0"}


@dataclass(frozen=True, slots=True)
class Place:
    """A folder in which somebody types; RUN, TIME and FOLDER stand for what was made in it."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return forkserver.environment(**ONE_RANK)

    def filled(self, text: str) -> str:
        """A command with real folders in it, of a real run that had one step."""
        text = re.sub(r"\b(RUN|run)/checkpoints/step_\d+", "run/checkpoints/step_000001", text)
        text = re.sub(r"outputs/sweeps/(TIME|<time>|masking)", "sweep", text)
        text = text.replace("sync FOLDER", "sync run")
        return text.removeprefix("scripts/run ")

    def run(self, *words: str, code: int = 0) -> str:
        """What it said; `python`, scripts and programs are those of the environment."""
        words = tuple(str(ROOT / w) if w.startswith("scripts/") else w for w in words)
        if words[:2] == ("python", "-m"):
            done = forkserver.command(self.folder, *words[2:], **ONE_RANK)
        else:
            words = (sys.executable if words[0] == "python" else words[0], *words[1:])
            done = subprocess.run(
                words, cwd=self.folder, env=self.environment, capture_output=True, text=True,
                timeout=300, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == code, f"{shlex.join(words)}\n{said}"
        assert code == 0 or "Traceback" not in said, said
        return said


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder with what the pages take for granted: a run, a sweep, data, a copy of a page."""
    here = Place(tmp_path_factory.mktemp("place"))
    for name, content in (
        ("completions.jsonl", json.dumps(SUDOKU)),
        ("mbpp.jsonl", json.dumps(MBPP)),
        ("outputs/data/math500/test.jsonl", json.dumps(QUESTION)),
        ("outputs/data/gsm8k/test.jsonl", json.dumps(QUESTION)),
        ("docs/lab.md", (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")),
    ):
        path = here.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="utf-8")
    train = ("python", "-m", "drift.train", *SMALL["train"])
    here.run(*train, "hydra.run.dir=run")
    here.run(*train[:3], "-m", *train[3:], "seed=0,1", "hydra.sweep.dir=sweep")
    return here


# ---- ways to run a command


def as_it_stands(shown: Shown, place: Place, tmp_path: Path) -> None:
    """With settings behind it that make it small, into a folder of its own."""
    words = shlex.split(place.filled(shown.text))
    module = next((word.removeprefix("drift.") for word in words if word.startswith("drift.")), "")
    words = [f"output={tmp_path / 'output'}" if word == "output=FOLDER" else word for word in words]
    words += SMALL.get(module, ())
    if module == "train":
        words += OFF
    folder = "sweep" if "-m" in words[3:] else "run"
    if module in ("train", "eval", "lab", "sft", "doctor"):
        words = [word for word in words if not re.match(r"hydra\.(run|sweep)\.dir=", word)]
        words.append(f"hydra.{folder}.dir={tmp_path / 'out'}")
    place.run(*words)
    if module in ("train", "eval", "lab", "sft"):
        assert any((tmp_path / "out").iterdir())


def refused(reason: str, *settings: str) -> Callable[[Shown, Place, Path], None]:
    """What it needs is not here: it is composed, checked, and refused for that reason alone."""

    def way(shown: Shown, place: Place, tmp_path: Path) -> None:
        words = [*shlex.split(place.filled(shown.text)), *settings]
        words = [word for word in words if not word.startswith("hydra.sweep.dir=")]
        folder = "sweep" if "-m" in words[3:] else "run"
        said = place.run(*words, f"hydra.{folder}.dir={tmp_path / 'out'}", code=1)
        assert re.search(reason, said), said

    return way


def as_shown(shown: Shown, place: Place, tmp_path: Path) -> None:
    """A mistake: the page shows what is said of it, perhaps over several lines."""
    page = shown.page.read_text(encoding="utf-8").splitlines()
    said = place.run(*shlex.split(place.filled(shown.text)), code=1).strip()
    assert said in " ".join(page[shown.line : shown.line + 3])


def on_the_cpu(settings: str) -> Callable[[Shown, Place, Path], None]:
    """A measurement for a GPU, of a smaller network on the CPU: what is behind wins."""

    def way(shown: Shown, place: Place, tmp_path: Path) -> None:
        place.run(*shlex.split(f"{shown.text} --shape small --device cpu {settings}"))

    return way


def served(option: str, title: bytes) -> Callable[[Shown, Place, Path], None]:
    """A page with that title is served; the option says where."""

    def way(shown: Shown, place: Place, tmp_path: Path) -> None:
        port = free_port()
        text = place.filled(shown.text).replace("scripts/", f"{ROOT}/scripts/")
        server = subprocess.Popen(
            [*shlex.split(text), option.format(port=port)],
            cwd=place.folder, env=place.environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            end = time.monotonic() + 300
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                        assert title in answer.read()
                        break
                except OSError:
                    assert time.monotonic() < end and server.poll() is None
                    time.sleep(0.2)
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # its own group: its workers too
            server.wait()

    return way


RUN = """#!/usr/bin/env bash
# In the place of scripts/run: the same commands, with fewer steps and problems
shift
words=()
for word in "$@"; do
  case $word in num_steps=*) word=num_steps=2 ;; task.train_size=*) word=task.train_size=50 ;; esac
  words+=("$word")
done
case "${words[*]}" in *drift.sft*) words+=(eval.max_examples=4 eval.every=0) ;; esac
exec "$DRIFT_PYTHON" "${words[@]}"
"""


def make_tiny(shown: Shown, place: Place, tmp_path: Path) -> None:
    """The real script, whose 16,600 steps of fine-tuning are four here."""
    (tmp_path / "scripts").mkdir()
    for name in ("make_tiny.sh", "blank_tiny.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    (tmp_path / "scripts" / "run").write_text(RUN)
    (tmp_path / "scripts" / "run").chmod(0o755)
    environment = place.environment | {"DRIFT_PYTHON": sys.executable}
    subprocess.run(shlex.split(shown.text), cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "outputs" / "tiny-countdown" / "model.safetensors").is_file()


def pre_commit(shown: Shown, place: Place, tmp_path: Path) -> None:
    """In a repository of its own."""
    shutil.copy(ROOT / ".pre-commit-config.yaml", tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(shlex.split(place.filled(shown.text)), cwd=tmp_path, check=True)
    assert (tmp_path / ".git" / "hooks" / "pre-commit").is_file()


Way = str | Callable[[Shown, Place, Path], None]
SLURM, RANKS = "tests/slow/test_slurm.py::", "tests/slow/test_ranks.py::"
MISSING = r"GSAI-ML/LLaDA-8B-Instruct is neither a folder nor a downloaded checkpoint"
WAYS: tuple[tuple[str, Way], ...] = (
    (r"^scripts/run pytest\b", ".ci/run"),
    (r"^\.ci/run$", ".ci/run"),
    (r"pre-commit install", pre_commit),
    (r"make_tiny\.sh", make_tiny),
    (r"mlflow ui", served("--port={port}", b"MLflow")),
    (r"mkdocs serve", served("--dev-addr=127.0.0.1:{port}", b"Drift")),
    # after the steps of the guides
    (
        r"masking=suffix|objective=cispo",
        "tests/slow/test_docs_guides.py::test_the_guides_change_is_tested_and_trains",
    ),
    (
        r"^python -m drift$",
        "tests/commands/test_help.py::test_commands_are_listed_with_a_line_each",
    ),
    (
        r" --help$",
        "tests/commands/test_help.py::test_help_lists_the_groups_of_the_command_and_what_is_chosen",
    ),
    (r"drift -sc install", "tests/commands/test_help.py::test_completion_can_be_installed"),
    # a real SLURM
    (r"slurm_one_node\.sh install", ".ci/run"),
    (r"slurm_one_node\.sh (start|env)", SLURM + "environment"),
    (r"^(sinfo|squeue)$", "scripts/slurm_one_node.sh"),
    (r"^ls .*outputs/sweeps", SLURM + "test_a_sweep_of_four_jobs_runs_as_an_array_to_its_end"),
    (
        r"cluster\.partition=nowhere",
        SLURM + "test_what_slurm_cannot_run_is_refused_before_anything_is_submitted",
    ),
    (
        r"cluster\.gpus_per_node=8",
        SLURM + "test_what_slurm_cannot_run_is_refused_before_anything_is_submitted",
    ),
    (
        r"-m masking=.* cluster=slurm",
        SLURM + "test_a_sweep_of_four_jobs_runs_as_an_array_to_its_end",
    ),
    (
        r"cluster=slurm cluster\.num_processes=2",
        SLURM + "test_the_two_tasks_of_a_job_are_two_ranks_of_one_run",
    ),
    (
        r"^scancel --signal=USR2",
        SLURM + "test_pre_emption_by_usr2_checkpoints_at_the_step_boundary",
    ),
    (r"^scontrol update jobid", SLURM + "restart_now"),
    (r"^grep -A1 resumed", SLURM + "resumed_at"),
    # several processes
    (r"^torchrun|^accelerate launch", RANKS + "test_every_launcher_gives_the_same_run"),
    # without GPUs, the hub and its checkpoints
    (r"model=llada task=gsm8k cluster=(node|multinode)", refused(MISSING)),
    (r"checkpoints=\[GSAI-ML/LLaDA-8B-Instruct", refused(MISSING)),
    (r"prepare dataset=gsm8k$", refused("openai/gsm8k cannot be read from the hub", "output=new")),
    (r"bench/gpu_smoke\.py", on_the_cpu("--length 8")),
    (
        r"bench/rollout\.py",
        on_the_cpu(
            "--dtype float32 --batch 1 --prompt 8 --length 8 --block 8 --steps 8 --tries 1"
            " --rule static threshold factor"
        ),
    ),
    (r"bench/learner\.py", on_the_cpu("--rows 1 --length 16 --attention sdpa")),
    (
        r"drift\.plan model=(llada|dream) task=math rollout",
        "tests/slow/test_plan.py::test_the_tables_of_the_docs_are_what_the_command_prints",
    ),
    # what they take long for, or need a folder for
    (
        r"hydra/sweeper=optuna",
        "tests/slow/test_sweep.py::test_optuna_looks_for_the_highest_validation_accuracy",
    ),
    (
        r"task(\.name)?=ones",
        "tests/commands/test_own_task.py::test_the_guides_commands_train_and_grade",
    ),
    (r"model=mine", "tests/slow/test_docs_guides.py::test_the_guides_family_loads_and_is_healthy"),
    (r"rollout\.block_length=5$", as_shown),
    (r"^(scripts/run )?python (-m drift\.\w+|scripts/)", as_it_stands),
)
SHOWN = list(
    {
        shown.text.removeprefix("scripts/run "): shown
        for page in PAGES
        for shown in commands_of(page)
    }.values()
)


def way_of(shown: Shown) -> tuple[str, Way]:
    """The words that a pattern found in a command, and how that is run."""
    matches = ((re.search(pattern, shown.text), way) for pattern, way in WAYS)
    found = next(((match[0], way) for match, way in matches if match), None)
    if found is None:
        pytest.fail(
            f"{shown}\nno test runs this command. Add a line to WAYS in {Path(__file__).name}: "
            "a pattern with the test or script that runs it, or with a function that does.",
            pytrace=False,
        )
    return found


def is_there(place: str, words: str) -> bool:
    """Whether a test of that name exists, or a script, that has the words or follows the page."""
    file, _, name = place.partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    if not name:
        return words == file or words in text
    here = re.search(rf"^def {name}\(", text, re.MULTILINE)
    return here is not None and (words.split()[-1] in text or "commands_of(" in text)


@pytest.mark.parametrize("shown", SHOWN, ids=str)
def test_a_command_that_is_shown_works(
    shown: Shown, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    words, way = way_of(shown)
    if isinstance(way, str):
        assert is_there(way, words), f"{shown}\n{way} does not run this; mend WAYS"
    else:
        way(shown, request.getfixturevalue("place"), tmp_path)


def test_a_test_that_lacks_the_option_does_not_run_the_command() -> None:
    named = RANKS + "test_every_launcher_gives_the_same_run"
    assert is_there(named, "torchrun")
    assert not is_there(named, "cluster=node cluster.num_processes=4")


def test_every_way_is_taken() -> None:
    unused = {pattern for pattern, _ in WAYS if not any(re.search(pattern, s.text) for s in SHOWN)}
    assert unused == set()


def test_a_command_that_nothing_runs_is_told_with_what_to_do() -> None:
    with pytest.raises(
        pytest.fail.Exception, match=r"README.md:7: docker run drift\nno test runs this"
    ):
        way_of(Shown(ROOT / "README.md", 7, "docker run drift"))


PAGE = """# A page
It says `python -m drift.train seed=1`, `python -m drift.eval ... seed=1` and `drift.train`.

    scripts/run a \\
        b=c   # why
    not a command

```console
$ python -m drift.train x=1 &
step 1
```
   ```
   mlflow ui
   other words
   ```
```python
python = 1
```
"""


def test_commands_are_found_in_blocks_and_in_sentences(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    found = [(shown.line, shown.text) for shown in commands_of(page)]
    assert found == [
        (2, "python -m drift.train seed=1"),
        (4, "scripts/run a b=c"),
        (9, "python -m drift.train x=1"),
        (13, "mlflow ui"),
    ]
