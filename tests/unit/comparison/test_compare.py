"""What is told of runs beside each other: hand-computed numbers, and the report's files."""

import json
import math
import re
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from matplotlib.figure import Figure

from drift.common.errors import ConfigError
from drift.common.files import write_json
from drift.common.stats import mean_height, pareto_front, t_interval, wilson
from drift.comparison.charts import accuracy_over_nfe, looks, smooth
from drift.comparison.records import (
    RunGroup,
    RunRecord,
    from_experiment,
    from_sweep,
    grouped,
    horizon,
)
from drift.comparison.report import Comparison, log_report, write_report
from drift.config.tracking import MlflowConfig
from drift.runs.stores import Card, comparison_address, open_experiment
from drift.runs.tracking import Tracker

PARAMS = {"rollout.prompts_per_step": "4", "rollout.group_size": "2", "seed": "0", "lr": "0.1"}


def make_run(
    masking: str = "all", seed: int = 0, *, accuracies: tuple[float, ...] = (0.2, 0.4, 0.6)
) -> RunRecord:
    """Steps 0, 1, ... of 8 samples; a step takes 2 s of training and 1 s of evaluation."""
    lines = [{"step": 0, "unix_s": 0.0, "eval/accuracy": accuracies[0], "eval/nfe": 6.0}]
    for step, accuracy in enumerate(accuracies[1:], start=1):
        lines.append({
            "step": step, "unix_s": 3.0 * step, "reward/mean": step / 10, "eval/accuracy": accuracy,
            "eval/nfe": 6.0 - step, "rollout/tokens": 60.0, "time/rollout_s": 1.5,
            "time/reward_s": 0.0, "time/update_s": 0.5, "time/sync_s": 0.0, "time/eval_s": 1.0,
            "time/checkpoint_s": 0.0, "mem/peak_gib": 0.25 * step,
        })  # fmt: skip
    n = 100
    correct = round(accuracies[-1] * n)
    last = {"accuracy": correct / n, "n": n, "ci95": list(wilson(correct, n))}
    return RunRecord(
        name=f"{masking}{seed}",
        settings={"masking": masking},
        params=PARAMS | {"seed": str(seed), "masking": masking},
        status="finished",
        lines=lines,
        evals={"last": last},
        wall_s=10.0,
        run_id=f"id-{masking}-{seed}",
    )


def test_students_interval_of_a_known_case() -> None:
    """Mean 0.6, s = 0.1, t(0.975, 2) = 4.30265: half width 0.248414."""
    low, high = t_interval([0.5, 0.6, 0.7])
    assert (low, high) == (pytest.approx(0.351586, abs=1e-6), pytest.approx(0.848414, abs=1e-6))
    with pytest.raises(ValueError, match="two or more"):
        t_interval([0.5])


def test_mean_height_of_known_curves() -> None:
    assert mean_height([0, 1], [0, 1], 1) == 0.5
    assert mean_height([0, 1], [0, 1], 0.5) == 0.25
    assert mean_height([0, 1, 3], [0, 1, 1], 2) == 0.75  # (0.5 + 1) / 2
    assert mean_height([2, 4, 8], [0.5, 0.5, 0.1], 4) == 0.5
    with pytest.raises(ValueError, match="not within"):
        mean_height([0, 1], [0, 1], 2)


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 1)), min_size=2, max_size=9),
    st.floats(0.01, 1),
)
def test_mean_height_is_within_the_curve(steps: list[tuple[float, float]], share: float) -> None:
    xs = [sum(width for width, _ in steps[:i]) for i in range(len(steps))]
    ys = [y for _, y in steps]
    height = mean_height(xs, ys, share * xs[-1])
    assert min(ys) - 1e-9 <= height <= max(ys) + 1e-9


def test_figures_of_a_run() -> None:
    run = make_run()
    assert run.steps == 2
    assert run.samples == [0.0, 8.0, 16.0]
    assert run.seconds == [0.0, 2.0, 4.0]  # without evaluation
    assert run.figure("tokens/s") == 40.0
    assert run.figure("NFE") == 4.0
    assert run.figure("peak GiB") == 0.5
    assert run.curve("reward/mean", "samples") == ([8.0, 16.0], [0.1, 0.2])
    assert run.curve("eval/accuracy", "seconds") == ([0.0, 2.0, 4.0], [0.2, 0.4, 0.6])
    assert run.phase_shares["rollout"] == 0.5
    assert math.isclose(sum(run.phase_shares.values()), 1)


def test_samples_count_what_dynamic_sampling_drew() -> None:
    run = make_run()
    for line, drawn in zip(run.lines[1:], (12.0, 4.0), strict=True):
        line["rollout/drawn_prompts"] = drawn  # of 4 a round, 2 completions each
    assert run.samples == [0.0, 24.0, 32.0]
    assert run.curve("eval/accuracy", "samples") == ([0.0, 24.0, 32.0], [0.2, 0.4, 0.6])


POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@given(POINTS)
def test_the_pareto_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    kept = [point for point, on in zip(points, front, strict=True) if on]
    assert bool(kept) == bool(points)
    for (cost, value), on in zip(points, front, strict=True):
        beaten = [(c <= cost and v > value) or (c < cost and v >= value) for c, v in points]
        assert on != any(beaten)
        # whatever is not on the front is beaten by something that is
        assert on or any((c <= cost and v >= value) for c, v in kept)
    rising = sorted(set(kept))
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(rising))


@given(POINTS, st.randoms())
def test_the_pareto_front_does_not_depend_on_order(
    points: list[tuple[float, float]], random
) -> None:
    before = dict(zip(points, pareto_front(points), strict=True))
    random.shuffle(points)
    assert dict(zip(points, pareto_front(points), strict=True)) == before


def test_the_settings_on_the_front_are_marked() -> None:
    """NFE 4 after two steps, 3 after three: slower and worse is beaten, the fast one is not."""
    best = make_run("best", accuracies=(0.2, 0.4, 0.8))
    beaten = make_run("beaten", accuracies=(0.2, 0.4, 0.6))
    fast = make_run("fast", accuracies=(0.2, 0.3, 0.4, 0.5))
    waiting = RunRecord(name="3", settings={"masking": "none"}, params={}, status="waiting")
    comparison = Comparison("s", [best, beaten, fast, waiting])
    assert comparison.columns()[-1] == "front"
    assert [comparison.row(group)[-1] for group in comparison.groups] == ["*", "", "*", ""]


def test_seeds_are_grouped_with_an_interval_over_runs_and_problems() -> None:
    runs = [make_run(seed=0), make_run(seed=1), make_run("coupled", accuracies=(0.2, 0.3, 0.8))]
    same, other = grouped(runs)
    assert [run.seed for run in same.runs] == ["0", "1"]
    assert same.label == "masking=all"
    both = same.accuracy("last")
    assert both is not None
    assert (both.value, both.n, both.ci95) == (0.6, 2, wilson(60, 100))  # equal seeds tell nothing
    one = other.accuracy("last")
    assert one is not None
    assert str(one) == "0.800 [0.711, 0.867]"
    apart = RunGroup(settings={}, runs=[make_run(), make_run(seed=1, accuracies=(0.2, 0.4, 0.8))])
    wide = apart.accuracy("last")
    assert wide is not None
    assert wide.value == pytest.approx(0.7)
    assert wide.ci95 == (0.0, 1.0)  # t(0.975, 1) = 12.7
    assert horizon(runs, "seconds") == 4.0
    speed = other.speed("seconds", 4.0)
    assert speed is not None
    assert speed.value == pytest.approx((0.25 + 0.55) / 2)
    assert speed.ci95 is None


def test_the_fastest_setting_is_named_with_what_the_intervals_say() -> None:
    fast = [make_run("coupled", seed, accuracies=(0.2, 0.6 + seed / 100, 0.8)) for seed in (0, 1)]
    slow = [make_run("all", seed, accuracies=(0.2, 0.2 + seed / 100, 0.4)) for seed in (0, 1)]
    first, second = Comparison("s", [*slow, *fast]).findings()
    assert first.startswith(
        "Highest mean validation accuracy over the first 4 s of training: masking=coupled, 0.552"
    )
    assert first.endswith("(the intervals are apart).")
    assert "over the first 16 samples of training: masking=coupled" in second
    only = list(Comparison("s", [slow[0], fast[0]]).findings())
    assert only[0].endswith("(one run each, no interval over runs).")


def groups_of(*settings: dict[str, str]) -> list[RunGroup]:
    return [RunGroup(settings=own, runs=[make_run()]) for own in settings]


def test_colours_and_dashes_tell_two_settings_apart() -> None:
    two = [{"masking": m, "rollout": r} for m in ("all", "random", "trace") for r in ("a", "b")]
    drawn = looks(groups_of(*two))
    assert len({(look["color"], look["linestyle"]) for look in drawn}) == 6
    for own, look in zip(two, drawn, strict=True):
        assert look["color"] == drawn[two.index({**own, "rollout": "a"})]["color"]
        assert look["linestyle"] == {"a": "-", "b": "--"}[own["rollout"]]


@pytest.mark.parametrize("keys", [1, 2])
def test_thirty_two_groups_differ(keys: int) -> None:
    settings = [{"a": str(n), **({"b": str(n)} if keys == 2 else {})} for n in range(32)]
    drawn = looks(groups_of(*settings))
    assert len({(look["color"], look["linestyle"]) for look in drawn}) == 32


def test_a_running_mean_of_the_points_so_far() -> None:
    assert smooth(([1.0, 2.0, 4.0], [3.0, 5.0, 10.0]), 2) == ([1.0, 2.0, 4.0], [3.0, 4.0, 7.5])


def test_the_report_is_one_file_that_asks_for_nothing(tmp_path: Path) -> None:
    failed = RunRecord(
        name="2", settings={"masking": "<b>"}, params={}, status="failed", error="no <i>room</i>"
    )
    comparison = Comparison("a & b", [make_run(), make_run("coupled"), failed])
    address = comparison_address("http://127.0.0.1:5000", ["x", "y"], ["1", "1"])
    files = write_report(tmp_path / "new", comparison, address)
    assert {path.name for path in files} == {
        "report.html", "table.md", "results.json", "learning.png", "accuracy_nfe.png", "phases.png",
    }  # fmt: skip
    page = (tmp_path / "new" / "report.html").read_text()
    assert page.count("<svg") == 8
    assert "a &amp; b" in page
    assert "no &lt;i&gt;room&lt;/i&gt;" in page
    assert "3 runs, 2 finished, 3 settings" in page
    assert re.findall(r'(?:src|href)="(?!#|http://127)([^"]*)"', page) == []
    assert page.count("http://127.0.0.1:5000/#/compare-runs?runs=%5B%22x%22,%22y%22%5D") == 1
    assert "&amp;experiments=%5B%221%22%5D" in page
    assert "#345678" not in page
    for path in files:
        assert path.stat().st_size < 300_000
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
    rows = (tmp_path / "new" / "table.md").read_text().splitlines()
    assert rows[2].startswith("| all | 1/1 |  | 0.600 [0.502, 0.691] |")
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert results["settings"][0]["final"] == "0.600 [0.502, 0.691]"


def test_an_interval_whose_end_was_rounded_past_its_share_is_drawn() -> None:
    """Of 0 right answers, as in summaries that are written already."""
    run = make_run(accuracies=(0.2, 0.0))
    run.evals["last"] = {"accuracy": 0.0, "n": 12, "ci95": [1e-17, 0.25]}
    axes = Figure().add_subplot()
    accuracy_over_nfe(axes, grouped([run]))
    (bar,) = axes.containers
    assert bar.get_label() == "masking=all"


def store_runs(folder: Path) -> MlflowConfig:
    """Two runs of two settings, tracked as a run is, with their summaries."""
    store = MlflowConfig(uri=f"sqlite:///{folder}/mlflow.db", system_metrics=False)
    for masking in ("all", "coupled"):
        record = make_run(masking, accuracies=(0.2, 0.4, 0.6 if masking == "all" else 0.8))
        run_folder = folder / masking
        run_folder.mkdir()
        tracker = Tracker(store, run_folder)
        tracker.start(masking, {**record.params, "masking": masking}, {}, done_step=-1)
        for line in record.lines:
            tracker.log(
                line["step"], {k: v for k, v in line.items() if k not in ("step", "unix_s")}
            )
        summary = {"status": "finished", "eval": record.evals, "wall_s": 10.0}
        (run_folder / "summary.json").write_text(json.dumps(summary))
        tracker.log_files([run_folder / "summary.json"])
        assert tracker.finish("FINISHED")
    return store


def test_a_sweeps_runs_say_which_store_has_them(tmp_path: Path) -> None:
    store = MlflowConfig(uri="sqlite:///mlflow.db", experiment="sweeps")
    (tmp_path / "0").mkdir()
    card = {
        "card": asdict(Card(name="0", params={}, tags={})),
        "tracking": {"backend": "mlflow", **asdict(store)},
    }
    write_json(tmp_path / "0" / "job.json", {"status": "running"})
    write_json(tmp_path / "0" / "tracking.json", card)
    jobs = [{"num": 0, "overrides": ["seed=0"], "folder": "0"}]
    write_json(tmp_path / "sweep.json", {"swept": ["seed"], "jobs": jobs})
    assert from_sweep(tmp_path)[1] == store


def test_an_experiment_is_read_back_from_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_runs(tmp_path)
    runs = from_experiment(store)
    assert [run.settings for run in runs] == [
        {"masking": "all"}, {"masking": "coupled"},
    ]  # fmt: skip
    expected = make_run("coupled", accuracies=(0.2, 0.4, 0.8))
    for metric in ("reward/mean", "eval/accuracy", "eval/nfe"):
        for axis in ("steps", "seconds", "samples"):
            assert runs[1].curve(metric, axis) == expected.curve(metric, axis)
    assert runs[1].evals == expected.evals
    assert (runs[1].status, runs[1].wall_s, runs[1].seed) == ("finished", 10.0, "0")
    for _ in range(2):  # a second report takes the place of the first, and is no run to compare
        log_report(store, "all of it", [tmp_path / "all" / "summary.json"])
    assert [run.run_id for run in from_experiment(store)] == [run.run_id for run in runs]
    client, experiment = open_experiment(store)
    client.create_run(experiment, tags={"kind": "eval"})  # of drift.eval, in the same experiment
    note = client.create_run(experiment, run_name="note").info.run_id  # of somebody else
    client.set_terminated(note)
    monkeypatch.setattr("drift.comparison.records.PAGE", 1)
    assert [run.run_id for run in from_experiment(store)] == [run.run_id for run in runs]
    said = f"left out: note ({note}), which has no param rollout.prompts_per_step"
    assert caplog.messages == [said]
    (report,) = client.search_runs([experiment], filter_string="tags.compare = 'all of it'")
    assert [f.path for f in client.list_artifacts(report.info.run_id)] == ["summary.json"]


def test_an_experiment_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    store = store_runs(tmp_path)
    store.experiment = "drfit"
    with pytest.raises(ConfigError, match="it has: Default, drift"):
        from_experiment(store)
