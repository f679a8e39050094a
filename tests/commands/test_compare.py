"""What is told of runs beside each other: hand-computed numbers, and the report's files."""

import json
from pathlib import Path

import pytest

from drift.comparison.records import from_sweep
from drift.runs.stores import comparison_address
from tests.conftest import Run
from tests.unit.comparison.test_compare import store_runs


def test_the_command_prints_writes_and_ends_with_the_address(run: Run, tmp_path: Path) -> None:
    store = store_runs(tmp_path)
    done = run("compare", "experiment=drift", f"tracking.uri={store.uri}")
    ids = [(tmp_path / name / "mlflow_run_id").read_text() for name in ("all", "coupled")]
    address = comparison_address("http://127.0.0.1:5000", ids, ["1"])
    assert done.stdout.splitlines()[-1] == address
    assert "0.800 [0.711, 0.867]" in done.stdout
    assert address.replace("&", "&amp;") in (
        tmp_path / "outputs" / "compare" / "drift" / "report.html"
    ).read_text()  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sweep=a", "experiment=b"], "give sweep=FOLDER or experiment=NAME, not both"),
        (["sweep=nothing"], "sweep=nothing holds no sweep.json; give the folder of a sweep"),
        (["experiment=x"], "tracking.uri=sqlite:///outputs/mlflow.db: no such file"),
        (["tracking=off"], "an experiment is read from MLflow; use tracking=mlflow"),
    ],
)
def test_a_mistake_is_one_line(run: Run, tmp_path: Path, overrides: list[str], said: str) -> None:
    done = run("compare", *overrides, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"drift: {said}")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_without_a_number_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    jobs = [{"num": 0, "overrides": ["seed=0"], "folder": None}]
    content = {"command": "", "swept": ["seed"], "jobs": jobs}
    (tmp_path / "s" / "sweep.json").write_text(json.dumps(content))
    runs, store = from_sweep(tmp_path / "s")
    assert (runs[0].status, runs[0].settings, store) == ("waiting", {}, None)
    done = run("compare", "sweep=s", check=False)
    assert done.stderr == "drift: s: none of its 1 runs has logged a step\n"
