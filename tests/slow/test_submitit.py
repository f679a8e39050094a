"""Jobs through submitit where there is no SLURM."""

from pathlib import Path

from tests.conftest import Run, read_lines


def test_a_sweep_runs_as_jobs_of_this_machine_also_without_m(run: Run, tmp_path: Path) -> None:
    run("train", "masking=all,random", "cluster=submitit_local", "debug=smoke", "tracking=off",
        "task.train_size=200")  # fmt: skip
    folders = sorted(tmp_path.glob("outputs/sweeps/*/[0-9]*"))
    assert [folder.name for folder in folders] == ["0", "1"]
    for folder in folders:
        assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == [0, 1, 2, 3]
