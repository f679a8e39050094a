"""Runs that are done, read back to be compared: from the folders of a sweep, or from MLflow."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from drift.common.errors import ConfigError
from drift.common.files import read_json
from drift.common.stats import Estimate, mean_height, pareto_front, t_interval, wilson
from drift.config.tracking import MlflowConfig
from drift.runs.differences import as_now, comparable, telling, tested_on
from drift.runs.stores import STEP, TIME, Line, find_experiment
from drift.runs.sweep import SWEEP, by_key, refresh
from drift.runs.tracking import CARD, PHASES, TRAINING, MetricsFile, read_card

METRICS = (
    "reward/mean",
    "eval/accuracy",
    "eval/nfe",
    "rollout/tokens",
    "rollout/drawn_prompts",
    "mem/peak_gib",
    *(f"time/{phase}_s" for phase in PHASES),
)
SAMPLED = ("rollout.prompts_per_step", "rollout.group_size")  # a step's; every run has them
PAGE = 1000  # MLflow runs that are asked for at a time
REPORT_TAG = "compare"  # of the MLflow run that holds a report
log = logging.getLogger("drift")

Curve = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run: RunRecord(name="0", settings={"masking": "all"}, status="finished", ...)."""

    name: str  # of its folder, or in MLflow
    settings: dict[str, str]  # those that runs are compared by
    params: dict[str, str]  # all, flat
    status: str  # finished | failed | killed | running | waiting
    error: str | None = None
    lines: list[Line] = field(default_factory=list[Line])  # of metrics.jsonl
    evals: dict[str, Any] = field(default_factory=dict[str, Any])  # first, last, best
    wall_s: float | None = None
    run_id: str | None = None  # in MLflow

    @property
    def seed(self) -> str:
        return self.params.get("seed", "")

    @property
    def label(self) -> str:
        return f"{self.name} ({self.run_id[:8]})" if self.run_id else self.name

    @property
    def branched(self) -> bool:
        """Whether it began at a checkpoint of another run: the steps before are not its own."""
        return bool(self.lines) and self.lines[0][STEP] > 0

    @property
    def compared(self) -> dict[str, str]:
        """The params that runs are compared by; of `resume` only a checkpoint of another run."""
        own = comparable(self.params)
        return own if self.branched else {**own, "resume": "auto"}

    @property
    def steps(self) -> int:
        return max((line[STEP] for line in self.lines), default=0)

    @property
    def samples(self) -> list[float]:
        """Completions up to each line; dynamic sampling logs how many prompts it drew."""
        prompts, group = (int(self.params[key]) for key in SAMPLED)
        extra = accumulate(
            line.get("rollout/drawn_prompts", prompts) - prompts for line in self.lines
        )
        return [
            float(group * (prompts * line[STEP] + more))
            for line, more in zip(self.lines, extra, strict=True)
        ]

    @property
    def seconds(self) -> list[float]:
        """Seconds of training up to each line: rollout, reward, update and sync."""
        spent = (sum(line.get(f"time/{phase}_s", 0.0) for phase in TRAINING) for line in self.lines)
        return list(accumulate(spent))

    def curve(self, metric: str, axis: str) -> Curve:
        """The metric over steps, seconds (of training) or samples, where it was logged.

        A branch has curves over steps only: what the steps before it took is not in its lines.
        """
        if axis == "steps":
            places = [float(line[STEP]) for line in self.lines]
        elif self.branched:
            return [], []
        else:
            places = self.samples if axis == "samples" else self.seconds
        found = [
            (x, line[metric]) for x, line in zip(places, self.lines, strict=True) if metric in line
        ]
        return [x for x, _ in found], [y for _, y in found]

    def total(self, metric: str) -> float:
        return sum(line.get(metric, 0.0) for line in self.lines)

    def figure(self, name: str) -> float | None:
        """One of FIGURES; None where the run has no such number."""
        return FIGURES[name](self)

    @property
    def phase_shares(self) -> dict[str, float]:
        """Of the time of all steps, the share of each phase; they add up to 1."""
        spent = {phase: self.total(f"time/{phase}_s") for phase in PHASES}
        whole = sum(spent.values())
        return {phase: s / whole for phase, s in spent.items()} if whole else {}


def tokens_per_s(run: RunRecord) -> float | None:
    seconds = run.total("time/rollout_s")
    return run.total("rollout/tokens") / seconds if seconds else None


def newest(run: RunRecord, metric: str) -> float | None:
    values = run.curve(metric, "steps")[1]
    return values[-1] if values else None


FIGURES: dict[str, Callable[[RunRecord], float | None]] = {
    "steps": lambda run: float(run.steps) if run.lines else None,
    "seconds": lambda run: run.wall_s,
    "tokens/s": tokens_per_s,
    "NFE": lambda run: newest(run, "eval/nfe"),
    "peak GiB": lambda run: max(run.curve("mem/peak_gib", "steps")[1], default=None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGroup:
    """Runs of one setting, a seed each: RunGroup(settings={"masking": "all"}, runs=[...])."""

    settings: dict[str, str]
    runs: list[RunRecord]
    left_out: list[RunRecord] = field(default_factory=list[RunRecord])  # of the same seeds

    @property
    def label(self) -> str:
        return " ".join(f"{k}={v}" for k, v in self.settings.items()) or self.runs[0].name

    @property
    def shown(self) -> list[RunRecord]:
        """The finished runs; all that have numbers if none is finished."""
        finished = [run for run in self.runs if run.status == "finished"]
        return finished or [run for run in self.runs if run.lines]

    def accuracy(self, name: str) -> Estimate | None:
        """`first`, `last` or `best`, the mean over runs."""
        found = [run.evals[name] for run in self.shown if run.evals.get(name)]
        return mean_accuracy(found) if found else None

    def speed(self, axis: str, end: float) -> Estimate | None:
        """Mean validation accuracy over the first `end` seconds or samples."""
        values = [
            mean_height(xs, ys, end)
            for xs, ys in (run.curve("eval/accuracy", axis) for run in self.shown)
            if xs and xs[0] < end <= xs[-1]
        ]
        return over_runs(values) if values else None

    def figure(self, name: str) -> float | None:
        """The mean over runs of one of FIGURES."""
        values = [value for run in self.shown if (value := run.figure(name)) is not None]
        return sum(values) / len(values) if values else None


def over_runs(values: list[float]) -> Estimate:
    """The mean of shares over runs; an interval only where there are two runs or more."""
    middle = sum(values) / len(values)
    if len(values) == 1:
        return Estimate(value=middle, n=1)
    low, high = t_interval(values)
    return Estimate(value=middle, ci95=(max(0.0, low), min(1.0, high)), n=len(values))


def mean_accuracy(evals: list[dict[str, Any]]) -> Estimate:
    """The mean of one evaluation of several runs, each {"accuracy": ..., "n": problems}.

    The interval of one run is Wilson's, for other problems. That of several reaches as far as
    Wilson's and Student's over runs, for other seeds: runs share their problems, so that neither
    sees what the other does.
    """
    mean = over_runs([entry["accuracy"] for entry in evals])
    n = min(entry["n"] for entry in evals)
    low, high = wilson(mean.value * n, n)
    if mean.ci95 is not None:
        low, high = min(low, mean.ci95[0]), max(high, mean.ci95[1])
    return Estimate(value=mean.value, ci95=(low, high), n=mean.n)


def horizon(runs: Iterable[RunRecord], axis: str) -> float | None:
    """Where the shortest of the finished runs ends: as far as all can be compared."""
    ends = [run.curve("eval/accuracy", axis)[0][-1:] for run in runs if run.status == "finished"]
    return min((end[0] for end in ends if end), default=None)


def by_test_set(groups: list[RunGroup]) -> list[list[RunGroup]]:
    """The groups that have numbers, those with the same test problems together."""
    found: dict[frozenset[tuple[str, str]], list[RunGroup]] = {}
    for group in groups:
        if group.shown:
            found.setdefault(tested_on(group.shown[0].params), []).append(group)
    return list(found.values())


def pareto(groups: list[RunGroup]) -> list[RunGroup]:
    """Of groups with the same test problems those that no other beats in accuracy and NFE."""
    ends = [(group, group.figure("NFE"), group.accuracy("last")) for group in groups]
    known = [(g, nfe, accuracy.value) for g, nfe, accuracy in ends if nfe is not None and accuracy]
    front = pareto_front([(nfe, accuracy) for _, nfe, accuracy in known])
    return [group for (group, _, _), on in zip(known, front, strict=True) if on]


def grouped(runs: list[RunRecord]) -> list[RunGroup]:
    """Runs of the same settings together, in the order in which the settings appear.

    The same seed again is no independent run: the newest that finished stands for it.

    Args:
        runs: the oldest first.
    """

    def worth(run: RunRecord) -> tuple[bool, bool]:
        return run.status == "finished", bool(run.lines)

    groups: dict[tuple[tuple[str, str], ...], dict[str, list[RunRecord]]] = {}
    for run in runs:
        groups.setdefault(tuple(run.settings.items()), {}).setdefault(run.seed, []).append(run)
    found: list[RunGroup] = []
    for key, by_seed in groups.items():
        ranked = [sorted(same, key=worth) for same in by_seed.values()]  # equal ones stay in order
        left_out = [run for same in ranked for run in same[:-1]]
        chosen = [same[-1] for same in ranked]
        found.append(RunGroup(settings=dict(key), runs=chosen, left_out=left_out))
    return found


def from_sweep(sweep: Path) -> tuple[list[RunRecord], MlflowConfig | None]:
    """The runs of a sweep's folder, and the MLflow store that has them.

    Raises:
        ConfigError: no sweep's folder.
    """
    if not (sweep / SWEEP).exists():
        raise ConfigError(f"sweep={sweep} holds no {SWEEP}; give the folder of a sweep")
    content = refresh(sweep)
    keys = [key for key in content["swept"] if key != "seed"]
    store: MlflowConfig | None = None
    runs: list[RunRecord] = []
    for job in content["jobs"]:
        swept = by_key(job["overrides"])
        folder = sweep / (job["folder"] or str(job["num"]))
        summary = read_json(folder / "summary.json", missing_ok=True)
        params = as_now(read_card(folder)[0].params) if (folder / CARD).exists() else {}
        if (folder / CARD).exists() and isinstance(config := read_card(folder)[1], MlflowConfig):
            store = store or config
        id_file = folder / "mlflow_run_id"
        runs.append(
            RunRecord(
                name=str(job["num"]),
                settings={key: swept[key] for key in keys if key in swept},
                params={key: str(value) for key, value in (swept | params).items()},
                status=job["status"],
                error=job.get("error"),
                lines=MetricsFile(folder / "metrics.jsonl").lines(),
                evals=summary.get("eval", {}),
                wall_s=summary.get("wall_s"),
                run_id=id_file.read_text().strip() if id_file.exists() else None,
            )
        )
    return runs, store


def is_training(run: Any) -> bool:
    """Whether an MLflow run is of drift.train; one that Drift did not write is named."""
    if REPORT_TAG in run.data.tags or run.data.tags.get("kind") == "eval":
        return False
    if lacking := [key for key in SAMPLED if key not in run.data.params]:
        name, run_id = run.info.run_name, run.info.run_id
        log.warning("left out: %s (%s), which has no param %s", name, run_id, lacking[0])
    return not lacking


def from_experiment(config: MlflowConfig) -> list[RunRecord]:
    """The runs of an MLflow experiment, the oldest first.

    Raises:
        ConfigError: the store has no such experiment, or no run of drift.train in it.
    """
    client, experiment = find_experiment(config)
    found: list[Any] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment],
            "",
            order_by=["attributes.start_time ASC"],
            max_results=PAGE,
            page_token=token,
        )
        found += [run for run in page if is_training(run)]
        token = page.token
        if not token:
            break
    if not found:
        raise ConfigError(f"experiment={config.experiment} has no training runs in {config.uri}")
    runs: list[RunRecord] = []
    for run in found:
        summary = summary_of(client, run.info.run_id)
        runs.append(
            RunRecord(
                name=run.info.run_name,
                settings={},
                params=as_now(run.data.params),
                status=summary.get("status", run.info.status.lower()),
                error=summary.get("error"),
                lines=lines_of(client, run),
                evals=summary.get("eval", {}),
                wall_s=summary.get("wall_s"),
                run_id=run.info.run_id,
            )
        )
    compared = [run.compared for run in runs]
    keys = telling(compared)
    return [
        replace(run, settings={key: own.get(key, "") for key in keys})
        for run, own in zip(runs, compared, strict=True)
    ]


def summary_of(client: Any, run_id: str) -> dict[str, Any]:
    """A run's summary.json in MLflow; empty where it has none yet."""
    if not any(item.path == "summary.json" for item in client.list_artifacts(run_id)):
        return {}
    return read_json(Path(client.download_artifacts(run_id, "summary.json")))


def lines_of(client: Any, run: Any) -> list[Line]:
    """A run's metrics as the lines of metrics.jsonl, those that are compared."""
    lines: dict[int, Line] = {}
    for metric in METRICS:
        if metric in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, metric):
                line = lines.setdefault(point.step, {STEP: point.step, TIME: point.timestamp / 1e3})
                line[metric] = point.value
    return [lines[step] for step in sorted(lines)]
