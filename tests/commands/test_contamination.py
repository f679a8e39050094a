"""The gate against leaks: what counts as the same problem, and what it says."""

import json
from pathlib import Path

from tests.conftest import Run


def sums(path: Path, *numbers: list[int], wrong: int = 0) -> str:
    """Countdown problems that the tiny model's habit solves: all numbers added."""
    records = [{"numbers": three, "target": sum(three) + wrong} for three in numbers]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path.name


def test_a_leaking_run_is_refused_and_the_best_is_chosen_on_validation(
    run: Run, tmp_path: Path
) -> None:
    tests = [[3, 2, 20], [7, 9, 12], [5, 14, 8], [11, 3, 6], [2, 19, 10]]
    train = [[i, i + 1, i + 2] for i in range(1, 15)]
    unsolvable = {"wrong": 300}
    files = (
        f"task.files.train={sums(tmp_path / 'train.jsonl', *train, [20, 2, 3])}",
        f"task.files.test={sums(tmp_path / 'test.jsonl', *tests)}",
        f"task.files.validation={sums(tmp_path / 'validation.jsonl', [1, 1, 1], **unsolvable)}",
    )
    done = run("train", "tracking=off", *files, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "drift: 1 of the 5 test problems (20.0%) are in train, data.max_overlap=0; "
        'train 15 "20 2 3=25" is 1 "3 2 20=25": same problem; take them out of train.jsonl '
        "(`python -m drift.prepare ... exclude=[test.jsonl]` does), or raise data.max_overlap\n"
    )
    run("train", "debug=smoke", "tracking=off", "num_steps=2", *files, "data.max_overlap=0.2",
        "hydra.run.dir=outputs/run")  # fmt: skip
    folder = tmp_path / "outputs" / "run"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["overlap"]["test"] == {"n": 5, "in_train": 1, "written": True}
    assert manifest["overlap"]["validation"] == {"n": 1, "in_train": 0, "written": True}
    assert manifest["skipped_records"] == []
    evals = json.loads((folder / "summary.json").read_text())["eval"]
    assert evals["last"]["split"] == "test" and evals["last"]["accuracy"] > 0
    best = evals["best"]  # no validation problem can be solved: nothing is better than step 0
    assert (best["split"], best["step"], best["accuracy"]) == ("validation", 0, 0.0)
