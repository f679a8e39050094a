"""Sweeps as a user starts them: a job that fails, an interruption, what is left to run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from drift.common.errors import ConfigError, DataError
from drift.common.files import read_json
from drift.runs.sweep import by_key, plan, refresh, state, what_is_left


def statuses(sweep: Path) -> list[str]:
    return [job["status"] for job in read_json(sweep / "sweep.json")["jobs"]]


def test_overrides_by_key() -> None:
    assert by_key(["masking=all", "+task.settings.x=a=b", "~debug"]) == {
        "masking": "all",
        "task.settings.x": "a=b",
    }


def write(path: Path, content: dict[str, Any], when: float) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    os.utime(path, (when, when))


def test_the_newer_file_of_a_job_knows_its_status(tmp_path: Path) -> None:
    """A job that failed, was run again by itself and is now finished; and the other way round."""
    summary = {"status": "finished", "steps": 3, "wall_s": 1.5, "eval": {"last": {"accuracy": 0.5}}}
    summary["mlflow_run_id"] = "abc"
    write(tmp_path / "0" / "job.json", {"status": "failed", "error": "no room"}, when=100)
    assert state(tmp_path / "0") == {"status": "failed", "error": "no room"}
    write(tmp_path / "0" / "summary.json", summary, when=200)
    told = state(tmp_path / "0")
    assert (told["status"], told["error"], told["accuracy"]) == ("finished", None, 0.5)
    write(tmp_path / "0" / "job.json", {"status": "running", "error": None}, when=300)
    assert state(tmp_path / "0")["status"] == "running"
    assert state(None) == {"status": "waiting"}


def test_sweep_json_is_computed_from_what_the_jobs_wrote(tmp_path: Path) -> None:
    plan(tmp_path, "again", ["seed"], [["seed=0"], ["seed=1"]])
    assert statuses(tmp_path) == ["waiting", "waiting"]
    content = read_json(tmp_path / "sweep.json")
    content["jobs"][1]["folder"] = "1"
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    write(tmp_path / "1" / "job.json", {"status": "failed", "error": "no room"}, when=100)
    assert [job["status"] for job in refresh(tmp_path)["jobs"]] == ["waiting", "failed"]
    plan(tmp_path, "again", ["seed"], [["seed=0"], ["seed=1"]])  # taken up: nothing is forgotten
    assert statuses(tmp_path) == ["waiting", "failed"]


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ([["seed=0"], ["seed=2"]], "its job 1 is `seed=1`, not `seed=2`"),
        ([["seed=0"]], "holds a sweep of 2 jobs, not 1"),
    ],
)
def test_the_folder_of_another_sweep_is_refused(
    tmp_path: Path, jobs: list[list[str]], words: str
) -> None:
    plan(tmp_path, "again", ["seed"], [["seed=0"], ["seed=1"]])
    with pytest.raises(ConfigError, match="choose another folder") as caught:
        plan(tmp_path, "again", ["seed"], jobs)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "is not JSON: "), ("[]", "is not a JSON object")]
)
def test_a_torn_file_of_a_sweep_is_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(DataError) as caught:
        refresh(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'sweep.json'} {reason}")


def test_what_is_left_of_a_sweep_is_told_when_a_job_starts(tmp_path: Path) -> None:
    jobs: list[dict[str, Any]] = [
        {"folder": "0", "status": "finished"},
        {"folder": "1", "status": "failed"},
        {"folder": "2", "status": "running"},
        *({"folder": None, "status": "waiting"} for _ in range(3)),
    ]
    sweep = tmp_path / "sweep.json"
    sweep.write_text(json.dumps({"jobs": jobs}))
    write(tmp_path / "2" / "job.json", {"started": 300.0, "ended": None}, when=300)
    assert what_is_left(tmp_path) == "3 more wait"
    write(tmp_path / "0" / "job.json", {"started": 100.0, "ended": 130.0}, when=130)
    write(tmp_path / "1" / "job.json", {"started": 130.0, "ended": 140.0}, when=140)
    assert what_is_left(tmp_path) == "3 more wait, 1:20 left"  # four jobs of 20 s
    jobs[3] = {"folder": None, "status": "running"}  # two at the same time
    sweep.write_text(json.dumps({"jobs": jobs}))
    assert what_is_left(tmp_path) == "2 more wait, 0:40 left"
    sweep.write_text(json.dumps({"jobs": jobs[:4]}))
    assert what_is_left(tmp_path) == ""
