"""What a run tells: a line or a progress bar, metrics, rollouts, summary, the words at the end."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drift.cluster.engine import Engine
from drift.common import terminal
from drift.common.files import read_json, survives_a_full_disk, write_json
from drift.common.types import Advantages, Rollout
from drift.config.commands import RunConfig
from drift.config.masking import MASKINGS
from drift.config.objective import AdvantageEstimator
from drift.rollout.evaluate import EvalResult
from drift.runs.tracking import PHASES, TRAINING, Tracker
from drift.traces.page import TraceRow, write_trace

LEARNED = 3  # problems shown at the end
SILENT_STEPS = 10  # in a row without anything to learn from are worth a warning
SAMPLES = 8  # completions of a step that the samples table shows
log = logging.getLogger("drift")


def step_metrics(engine: Engine, rollout: Rollout, advantages: Advantages) -> dict[str, float]:
    """The metrics of one rollout over all ranks; a mean travels as a sum and a count."""
    trace, scores = rollout.trace, rollout.scores
    local = {
        "rows": float(len(scores)),
        "groups": len(scores) / rollout.group_size,
        "reward/mean": sum(score.reward for score in scores),
        "reward/accuracy": float(sum(score.correct for score in scores)),
        "reward/grader_timeout_frac": float(sum(s.verdict == "grader_timeout" for s in scores)),
        "reward/zero_variance_frac": float(advantages.zero_variance_groups),
        "rollout/length": float(trace.length_B.sum()),
        "rollout/truncated_frac": float((~trace.finished_B).sum()),
        "rollout/nfe": float(trace.nfe_B.sum()),
        "rollout/tokens": float(trace.committed_BC.sum()),
    }
    if trace.block_length:
        local["rollout/commits"] = float(trace.commits_B.sum())
    names = sorted(scores[0].rewards)  # of all rows of this rank: `Task.checked_scores`
    engine.assert_same("the names of their rewards", names)
    for name in names:
        local[f"reward/{name}"] = sum(score.rewards[name] for score in scores)
    total = engine.sum(local)
    rows, groups = total.pop("rows"), total.pop("groups")
    per_group = {"reward/zero_variance_frac"}
    kept = {"rollout/tokens"}
    return {
        name: value if name in kept else value / (groups if name in per_group else rows)
        for name, value in total.items()
    }


def rollout_lines(rollout: Rollout) -> list[str]:
    """Every completion of this rank with its grade, as JSON."""
    trace = rollout.trace
    per_row = zip(
        rollout.texts,
        rollout.scores,
        trace.nfe_B.tolist(),
        trace.length_B.tolist(),
        strict=True,
    )
    lines: list[str] = []
    for row, (text, score, nfe, length) in enumerate(per_row):
        example = rollout.prompts.examples[row // rollout.group_size]
        line = {
            "key": example.key,
            "prompt": example.prompt,
            "completion": text,
            "reward": score.reward,
            "correct": score.correct,
            "verdict": score.verdict,
            "nfe": nfe,
            "length": length,
        }
        lines.append(json.dumps(line))
    return lines


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run is; with the checkpoint's tensors it is all that a resumed run needs.

    Everything else is a function of the seed and the step.
    """

    step: int = 0
    wall_s: float = 0.0
    phase_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    evals: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    best_step: int | None = None
    best_correct: int = -1
    owed: dict[str, float] = field(default_factory=dict[str, float])
    """Metrics of the last step while they wait for its evaluation, which a signal can put off."""
    logged_s: dict[str, float] = field(default_factory=dict[str, float])
    """`phase_s` when the last metrics were logged."""

    @property
    def logged_step(self) -> int:
        """The last step whose metrics are logged."""
        return self.step - bool(self.owed)

    @property
    def training_s(self) -> float:
        """Seconds of rollout, reward, update and sync."""
        return sum(self.phase_s[phase] for phase in TRAINING)


class Report:
    """One run's voice; silent on all ranks but the first."""

    def __init__(self, config: RunConfig, engine: Engine, tracker: Tracker):
        self.config = config
        self.engine = engine
        self.tracker = tracker
        self.folder = Path(config.output_dir)
        self.checkpoint: str | None = None
        self._view: terminal.RunView | None = None
        self._silent_steps = 0

    @contextmanager
    def progress_bar(self, done: int, total: int) -> Iterator[None]:
        """Steps, rewards and times of the run at the bottom of a terminal, while the block runs."""
        self._view = terminal.RunView(total, PHASES, done)
        for line in self.tracker.metrics.lines():  # of a run that goes on
            self._view.add(line)
        with terminal.show(self._view, stays=True):
            yield
        self._view = None

    def start(self, first: EvalResult, validation: EvalResult) -> None:
        """Record step 0: the policy before RL."""
        if self.engine.is_main:
            metrics = {
                "eval/accuracy": validation.accuracy.value,
                "eval/nfe": validation.nfe_mean,
                "eval/test_accuracy": first.accuracy.value,
            }
            self.tracker.log(0, metrics)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Record a step that is done; every rank calls."""
        peak = self.engine.max(self.engine.peak_memory_gib())
        if not self.engine.is_main:
            return
        tokens_per_s = metrics["rollout/tokens"] / metrics["time/rollout_s"]
        extra = {"rollout/tokens_per_s": tokens_per_s, "mem/peak_gib": peak}
        self.tracker.log(step, metrics | extra)
        self.warn_of_silence(step, metrics)
        accuracy = metrics.get("eval/accuracy")
        text = (
            f"reward {metrics['reward/mean']:.3f}  accuracy {metrics['reward/accuracy']:.3f}  "
            f"{tokens_per_s:.0f} tokens/s"
        )
        if accuracy is not None:
            text += f"  validation {accuracy:.3f}"
        if self._view is not None:
            self._view.add(metrics | extra)
            self._view.steps.move(step)
        shown = terminal.ON_VIEW if accuracy is None else None
        log.info("step %d/%d  %s", step, self.config.num_steps, text, extra=shown)

    def warn_of_silence(self, step: int, metrics: dict[str, float]) -> None:
        """Say once that step after step has no group with different rewards."""
        if self.config.objective.advantage == AdvantageEstimator.gae:
            return  # a group of equal rewards teaches too
        is_silent = metrics["reward/zero_variance_frac"] == 1
        self._silent_steps = self._silent_steps + 1 if is_silent else 0
        if self._silent_steps == SILENT_STEPS:
            log.warning(
                "nothing was learned in %d steps: every completion of a prompt has the same reward "
                "(mean %.3f); read some in %s/rollouts/step_%06d.jsonl",
                SILENT_STEPS,
                metrics["reward/mean"],
                self.folder,
                step,
            )

    def rollout(self, step: int, rollout: Rollout) -> None:
        """rollouts/step_*.jsonl: all completions of a step with their grades; every rank calls."""
        path = self.folder / "rollouts" / f"step_{step:06d}.jsonl"
        lines = self.engine.gather(rollout_lines(rollout))
        if not self.engine.is_main:
            return
        with survives_a_full_disk(path):
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def trace(self, step: int, rows: list[TraceRow]) -> None:
        """traces/step_*.html: some completions of a step, and what was trained on of them."""
        path = self.folder / "traces" / f"step_{step:06d}.html"
        title = f"{self.config.model.name} on {self.config.task.name}, step {step}"
        with survives_a_full_disk(path):
            path.parent.mkdir(exist_ok=True)
            write_trace(path, rows, title=f"{title}, masking {MASKINGS.name(self.config.masking)}")
            self.tracker.log_files([path])

    def evaluation(self, name: str, result: EvalResult, step: int) -> None:
        if self.engine.is_main:
            path = self.folder / "evals" / f"{name}.json"
            with survives_a_full_disk(path):
                write_json(path, result.record(step))
            if name == "first":
                log.info("%s accuracy on the %s split: %s", name, result.split, result.accuracy)

    def summarize(self, progress: Progress, status: str, error: str | None = None) -> None:
        """Write summary.json."""
        config = self.config
        summary: dict[str, Any] = {
            "status": status,
            "model": config.model.name,
            "task": config.task.name,
            "masking": MASKINGS.name(config.masking),
            "seed": config.seed,
            "steps": progress.step,
            "wall_s": progress.wall_s,
            "eval": {k: v for k, v in progress.evals.items() if k != "validation"},
            "phase_s": progress.phase_s,
            "checkpoint": self.checkpoint,
            "mlflow_run_id": self.tracker.mlflow_run_id,
        }
        if error is not None:
            summary["error"] = error
        if self.engine.is_main:
            with survives_a_full_disk(self.folder / "summary.json"):
                write_json(self.folder / "summary.json", summary)

    def samples_table(self) -> dict[str, list[Any]]:
        """Columns for MLflow: some completions of the first and of the last step."""
        files = sorted((self.folder / "rollouts").glob("step_*.jsonl"))
        columns: dict[str, list[Any]] = {}
        for path in dict.fromkeys([*files[:1], *files[-1:]]):
            for line in path.read_text(encoding="utf-8").splitlines()[:SAMPLES]:
                for key, value in {"step": path.stem, **json.loads(line)}.items():
                    columns.setdefault(key, []).append(value)
        return columns

    def learned(self) -> list[str]:
        """Some test problems that were answered wrongly before the run and rightly after it.

        None where an evaluation is not in this folder: of a run that began elsewhere.
        """
        files = [self.folder / "evals" / f"{name}.json" for name in ("first", "last")]
        if not all(file.exists() for file in files):
            return []
        first, last = (
            {row["key"]: row for row in read_json(file)["completions"]} for file in files
        )
        return [
            f"{first[key]['prompt']}  before: {first[key]['completion']}  "
            f"after: {after['completion']}"
            for key, after in last.items()
            if key in first and after["correct"] and not first[key]["correct"]
        ][:LEARNED]

    def log_end(self, progress: Progress) -> None:
        """The last lines of a run: what it reached and where to look."""
        if not self.engine.is_main:
            return
        for line in self.learned():
            log.info("%s", line)
        for name in ("first", "last"):
            entry = progress.evals[name]
            low, high = entry["ci95"]
            log.info(
                "%-5s held-out accuracy %.3f  95%% interval [%.3f, %.3f]  %d test problems",
                name,
                entry["accuracy"],
                low,
                high,
                entry["n"],
            )
        total = sum(progress.phase_s.values()) or 1.0
        shares = ", ".join(f"{k} {100 * progress.phase_s[k] / total:.0f}%" for k in PHASES)
        log.info("%.0f s: %s", progress.wall_s, shares)
        log.info("run folder: %s", self.folder)
        if self.tracker.store is not None:
            log.info("compare: %s", self.tracker.store.where)
