"""Which runs compare, in what, and what is told of those that do not."""

from dataclasses import replace

from matplotlib.figure import Figure

from drift.comparison.charts import accuracy_over_nfe
from drift.comparison.records import RunGroup, RunRecord
from drift.comparison.report import Comparison
from drift.config.compose import typed
from drift.runs.differences import as_now, flat_settings, telling, unnamed
from drift.runs.manifest import settings_of
from tests.configs import composed
from tests.unit.comparison.test_compare import make_run


def test_settings_that_tell_runs_apart_are_as_few_as_do_it() -> None:
    params = [
        {"masking.num_views": "1", "masking": "all"},
        {"masking.num_views": "2", "masking": "coupled"},
        {"masking.num_views": "2", "masking": "coupled", "optim.lr": "1"},
    ]
    assert telling(params) == ["masking", "optim.lr"]
    assert telling(params[:1]) == []
    before = {"masking.strategy": "all", "objective.policy_loss": "ppo_clip", "rollout.factor": ""}
    before |= {"objective.clip_low": "0.2", "rollout.remasking": "static"}
    assert as_now(before) == {
        "masking": "all", "objective": "ppo_clip", "objective.clip_low": "0.2", "rollout": "static",
    }  # fmt: skip
    kept = [{"checkpoint.every": "9", "optim.lr": "1"}, {"checkpoint.every": "8", "optim.lr": "2"}]
    assert telling(kept) == ["optim.lr"]  # what is learned with, not what is kept


def test_a_run_of_an_earlier_version_has_the_same_settings() -> None:
    now = settings_of(typed(composed()))
    assert now["choices"]["masking"] == "sequential"
    before = {group: value for group, value in now.items() if group != "choices"}
    for group, fields in {
        "masking": {"strategy": "sequential"},
        "rollout": {"remasking": "threshold", "factor": None},
        "objective": {"policy_loss": "reinforce", "clip_low": 0.2, "bound_share": None},
        "curriculum": {"order": "epoch"},
        "tracking": {"backend": "mlflow"},
        "optim": {"rows_per_forward": 64},
    }.items():
        before[group] = before[group] | fields
    before["rollout"] |= {"cache": "none"}
    assert flat_settings(before) == flat_settings(now)


def test_a_threshold_is_kept_of_the_rules_that_have_one() -> None:
    for option, kept in (("dynamic", True), ("threshold", True), ("static", False)):
        found = as_now({"rollout": option, "rollout.threshold": "0.9"})
        assert ("rollout.threshold" in found) == kept


def test_what_differs_beside_the_columns_is_told() -> None:
    """One column tells the two apart, and hides that they learn at different rates."""
    both = [make_run("all"), make_run("random")]
    both[0].params.update({"masking": "all", "optim.lr": "1e-4", "traces.every": "0"})
    both[1].params.update(
        {
            "masking": "random",
            "masking.ratio": "0.3",
            "optim.lr": "5e-4",
            "traces.every": "9",
        }
    )
    comparison = Comparison("s", both)
    assert comparison.settings == ["masking"]
    assert comparison.findings()[-1] == "Settings differ in more than their columns: optim.lr."
    assert comparison.differences() == [
        ("masking.ratio", ["", "0.3"]),
        ("optim.lr", ["1e-4", "5e-4"]),
        ("traces.every", ["0", "9"]),
    ]
    assert "optim.lr" not in dict(comparison.shared())


def test_what_comes_with_a_columns_choice_is_said_by_it() -> None:
    runs = [
        {"masking": "all", "masking.num_views": "1", "optim.lr": "1"},
        {"masking": "random", "masking.num_views": "3", "optim.lr": "2"},
    ]
    assert unnamed(runs, ["masking"]) == ["optim.lr"]
    again = {"masking": "random", "masking.num_views": "9", "optim.lr": "2"}
    assert unnamed([*runs, again], ["masking"]) == ["masking.num_views", "optim.lr"]
    presets = [{**run, "experiment": run["optim.lr"]} for run in runs]
    assert unnamed(presets, ["experiment"]) == []


def test_runs_of_one_setting_that_differ_in_more_than_the_seed_are_told() -> None:
    seeds = [make_run(seed=seed) for seed in (0, 1)]
    for run, lr in zip(seeds, ("1e-4", "5e-4"), strict=True):
        run.params["optim.lr"] = lr
    comparison = Comparison("s", seeds)
    said = "Runs of masking=all differ in more than the seed: optim.lr."
    assert comparison.findings() == [said]
    assert comparison.differences() == [("optim.lr", ["1e-4 | 5e-4"])]


def test_a_branch_of_another_run_is_a_setting_and_has_no_clock() -> None:
    """It knows neither what the steps before its first line took, nor where its curve began."""
    runs = [make_run(), make_run(seed=1), make_run(accuracies=(0.2, 0.4, 0.6, 0.8))]
    for number, resume in enumerate(("auto", "never", "other/checkpoints/step_000001")):
        runs[number].params["resume"] = resume
    del runs[2].lines[:2]
    assert runs[2].curve("eval/accuracy", "steps") == ([2.0, 3.0], [0.6, 0.8])
    assert runs[2].curve("eval/accuracy", "seconds") == ([], [])
    assert runs[2].curve("eval/accuracy", "samples") == ([], [])
    compared = [run.compared for run in runs]
    assert telling(compared) == ["resume"]
    comparison = Comparison(
        "s",
        [replace(r, settings={"resume": o["resume"]}) for r, o in zip(runs, compared, strict=True)],
    )
    assert [len(group.runs) for group in comparison.groups] == [2, 1]
    assert comparison.ends == {"seconds": 4.0, "samples": 16.0}
    assert comparison.groups[1].speed("samples", 16.0) is None
    (said,) = comparison.findings()
    assert said.startswith("Not compared by seconds and samples")
    assert said.endswith("run: all0 (id-all-0) at step 2.")
    assert "output_dir" not in dict(comparison.shared())


def test_a_seed_that_was_run_twice_counts_once() -> None:
    """Accuracies 0.8 and 0.86 of two seeds, each run twice, are two independent numbers."""
    runs = [make_run(seed=s, accuracies=(0.2, a)) for s, a in ((0, 0.8), (1, 0.86))]
    again = [replace(run, name=f"new{run.seed}", run_id=None) for run in runs]
    later = replace(again[1], name="later", status="killed", lines=[])
    comparison = Comparison("s", [*runs, *again, later])
    (group,) = comparison.groups
    assert [run.name for run in group.runs] == ["new0", "new1"]
    assert group.accuracy("last") == RunGroup(settings={}, runs=runs).accuracy("last")
    assert comparison.row(group)[1] == "2/2"
    (said,) = comparison.findings()
    assert said.startswith("Left out, another run has the same settings and seed: all0 (id-all-0)")


def test_findings_and_front_compare_runs_with_the_same_test_problems() -> None:
    """Sudoku is harder: its best setting has to be told, and not by countdown's."""
    runs: list[RunRecord] = []
    for task, more in (("countdown", 0.3), ("sudoku", 0.0)):
        for masking, accuracy in (("all", 0.3), ("random", 0.5)):
            run = make_run(accuracies=(0.1, accuracy + more))
            settings = {"task": task, "masking": masking}
            run.params.update(settings)
            run.params.update({"task.prompt": masking, "task.reward.format": task})
            runs.append(replace(run, settings=settings))
    comparison = Comparison("s", runs)
    assert [comparison.row(group)[-1] for group in comparison.groups] == ["", "*", "", "*"]
    *found, beside, said = comparison.findings()
    best = [line.split(": ", 1)[1].split(", ")[0] for line in found]
    assert best == ["task=countdown masking=random", "task=sudoku masking=random"] * 2
    assert all(
        f"next {name.replace('random', 'all')}" in line
        for name, line in zip(best, found, strict=True)
    )
    assert beside.endswith(
        "more than their columns: task.prompt."
    )  # the format comes with the task
    assert said.startswith("The settings have 2 sets of test problems")
    figure = Figure()
    accuracy_over_nfe(figure.subplots(), comparison.groups)
    (axes,) = figure.axes
    fronts = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert [list(line.get_ydata()) for line in fronts] == [[0.8], [0.5]]
    assert axes.get_legend_handles_labels()[1].count("Pareto front") == 1
