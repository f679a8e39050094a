"""The RL loop. `Trainer.step` is the algorithm; the rest is when to evaluate, save and report."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from drift.cluster.engine import Engine
from drift.cluster.preemption import StopRequest, patience_s
from drift.common import rng
from drift.common.errors import CheckpointError
from drift.common.types import Advantages, MaskedViews, PromptBatch, Rollout, StepReport
from drift.config.commands import RunConfig
from drift.config.objective import KLReference, RewardControl
from drift.config.task import Split
from drift.learner.advantage import estimate
from drift.learner.gap import sampler_gap, warn_of_gap
from drift.learner.masking import draw_views
from drift.learner.update import update
from drift.policy.base import Policy
from drift.policy.replica import Replica, move_towards, sampler_of
from drift.rollout.collect import collect
from drift.rollout.evaluate import EvalResult, Problems, UnfinishedError, evaluate
from drift.runs import checkpoints
from drift.tasks import Task
from drift.traces.rows import training_rows
from drift.training.curriculum import Curriculum
from drift.training.report import Progress, Report, step_metrics

log = logging.getLogger("drift")


class Trainer:
    """Trains `policy` on a task's prompts and reports to `report`."""

    def __init__(
        self,
        config: RunConfig,
        *,
        engine: Engine,
        policy: Policy,
        reference: Policy | None,
        task: Task,
        problems: dict[Split, Problems],
        report: Report,
    ):
        self.config = config
        self.engine = engine
        self.policy = policy
        self.reference = reference
        self.sampler = sampler_of(policy, config)
        self.task = task
        self.problems = problems
        self.report = report
        self.curriculum = Curriculum(config, engine, problems[Split.train])
        self.progress = Progress()
        self.checkpoints = Path(config.output_dir) / "checkpoints"
        self.counted_at = time.perf_counter()
        self.saved_step = -1  # of the newest checkpoint of this folder
        self.saved_best: int | None = None  # the step of the best one
        self.stop_request = StopRequest(patience_s(config.cluster))

    def step(self) -> tuple[Rollout, StepReport]:
        """One step of RL: sample, grade, compare, choose views, update."""
        config, step = self.config, self.progress.step
        drawn = self.curriculum.sample(step, self.complete)
        with self.phase("update"):
            metrics = step_metrics(self.engine, drawn, self.advantages(drawn))
            rollout = self.curriculum.select(drawn)
            metrics |= self.curriculum.metrics(drawn, rollout)
            advantages = self.advantages(rollout)
            key = rng.stream(config.seed, "gap", step)
            gap = sampler_gap(self.engine, self.policy, rollout, config, key)
            key = rng.stream(config.seed, "masking", step)
            draws = draw_views(rollout.trace, rollout.rows_B, config, key)
        self.trace(rollout, advantages, draws[0])
        with self.phase("update"):
            report = update(
                self.engine, self.policy, self.reference, rollout, advantages, draws, config
            )
        if isinstance(self.sampler, Replica):
            with self.phase("sync"):
                self.sampler.refresh(self.policy)
        self.follow()
        warn_of_gap(gap["gap/kl"])
        return drawn, StepReport(metrics=metrics | gap | report.metrics)

    @property
    def following(self) -> Policy | None:
        """The KL's reference, if it follows the policy."""
        follows = self.config.objective.kl_reference == KLReference.follow
        return self.reference if follows else None

    def follow(self) -> None:
        """Move the reference where a multiple of `follow_every` optimizer steps was passed."""
        objective, updates = self.config.objective, self.engine.updates
        passed = updates // objective.follow_every
        if self.following and passed > (updates - objective.num_steps) // objective.follow_every:
            with self.phase("sync"):
                move_towards(self.following, self.policy, objective.follow_share)

    def complete(self, prompts: PromptBatch) -> Rollout:
        """The completions of this rank's prompts, graded."""
        config, step = self.config, self.progress.step
        with self.phase("rollout"), self.engine.autocast():
            key = rng.stream(config.seed, "rollout", step)
            rollout = collect(self.sampler, self.task, prompts, config.rollout, key, step)
        self.move_time("rollout", "reward", rollout.reward_s)
        return rollout

    def advantages(self, rollout: Rollout) -> Advantages:
        """How much better each completion is than the others of its prompt."""
        size, estimator = self.config.rollout.group_size, self.config.objective.advantage
        return estimate(self.rewards(rollout), size, estimator)

    def rewards(self, rollout: Rollout) -> torch.Tensor:
        """[B] float32; shuffled over all ranks for the control run, which must not learn."""
        rewards = [score.reward for score in rollout.scores]
        if self.config.objective.reward_control == RewardControl.shuffle:
            key = rng.stream(self.config.seed, "shuffle", self.progress.step)
            everyone = self.engine.gather(rewards)
            order = rng.permutation(key, len(everyone))
            rewards = [everyone[order[row]] for row in rollout.rows_B.tolist()]
        return torch.tensor(rewards, device=self.engine.device)

    def trace(self, rollout: Rollout, advantages: Advantages, views: MaskedViews) -> None:
        """The trace page of this step, if one is due; before the update, by the first rank."""
        settings, step = self.config.traces, self.progress.step + 1
        if not settings.every or (step % settings.every and step != 1):
            return
        with self.phase("eval"), self.engine.autocast():
            if self.engine.is_main:
                rows = training_rows(self.sampler, rollout, advantages, views, settings.rows)
                self.report.trace(step, rows)
            self.sampler.settle()

    @property
    def at_end(self) -> bool:
        """`num_steps` are done, or `max_training_s` are spent."""
        progress, limit_s = self.progress, self.config.max_training_s
        spent = limit_s is not None and self.engine.max(progress.training_s) >= limit_s
        return spent or progress.step >= self.config.num_steps

    @property
    def finished(self) -> bool:
        """The last step, and the evaluation behind it, are done."""
        last = self.progress.evals.get("last")
        return last is not None and last["step"] == self.progress.step and self.at_end

    def fit(self) -> None:
        """Evaluate, train, evaluate; save along the way, and when a signal ends the run.

        Raises:
            PreemptedError: the signal came; the run is saved.
        """
        with self.stop_request:
            self.follow_schedule()

    def follow_schedule(self) -> None:
        config, progress = self.config, self.progress
        self.counted_at = time.perf_counter()
        if "validation" not in progress.evals:
            first = self.evaluate("first", Split.test)
            validation = self.evaluate("validation", Split.validation)
            self.report.start(first, validation)
        with self.report.progress_bar(progress.step, config.num_steps):
            if not progress.owed:
                progress.logged_s = dict(progress.phase_s)
            while progress.owed or not self.at_end:
                if not progress.owed:
                    self.stop_if_asked()
                    rollout, report = self.step()
                    progress.step += 1
                    progress.owed = dict(report.metrics)
                    self.report.rollout(progress.step, rollout)
                last = self.at_end
                metrics = progress.owed | self.evaluate_if_due(last)
                for name, total in progress.phase_s.items():
                    metrics[f"time/{name}_s"] = total - progress.logged_s[name]
                progress.owed, progress.logged_s = {}, dict(progress.phase_s)
                # first the line, then the checkpoint: a resumed run drops lines, never lacks one
                self.report.step(progress.step, metrics)
                self.save_if_due(last)
        if not self.finished:  # a run that is taken up behind its end
            self.evaluate("last", Split.test)
            self.save(must=True)

    def stop_if_asked(self) -> None:
        """Save and leave if any rank was sent a signal."""
        self.engine.assert_same("the step that comes next", self.progress.step)
        signum = int(self.engine.max(self.stop_request.signum))
        if signum:
            step, folder = self.progress.step, self.config.output_dir
            if self.saved_step != step:
                self.save()
            is_saved = self.saved_step == step
            saved = "the run is saved" if is_saved else f"step {step} could not be saved"
            words = f"{saved}; go on with hydra.run.dir={folder}"
            self.stop_request.end(signum, self.engine.rank, words)

    def evaluate_if_due(self, last: bool) -> dict[str, float]:
        """Every `eval.every` steps and at the last: eval/*; at the last also on the test split."""
        every, step = self.config.eval.every, self.progress.step
        metrics: dict[str, float] = {}
        if every and (step % every == 0 or last):
            result = self.evaluate("validation", Split.validation)
            metrics |= {"eval/accuracy": result.accuracy.value, "eval/nfe": result.nfe_mean}
        if last:
            test = self.evaluate("last", Split.test)
            metrics = {"eval/nfe": test.nfe_mean} | metrics
            metrics["eval/test_accuracy"] = test.accuracy.value
        return metrics

    def save_if_due(self, last: bool) -> None:
        """Every `checkpoint.every` steps, at the last, and at a new best validation accuracy."""
        every, step = self.config.checkpoint.every, self.progress.step
        due = (every and step % every == 0) or last
        if due or self.progress.best_step == step:
            self.save(must=last)

    def evaluate(self, name: str, split: Split) -> EvalResult:
        """Greedy accuracy on a split; the best validation result chooses the best checkpoint.

        Raises:
            PreemptedError: a signal ends the run, which is saved; it owes the evaluation.
        """
        greedy = replace(self.config.rollout, temperature=0.0)
        try:
            with self.phase("eval"):
                result = evaluate(
                    self.engine,
                    self.sampler,
                    self.task,
                    self.problems[split],
                    greedy,
                    leave=lambda: self.stop_request.signum > 0,
                )
        except UnfinishedError:
            self.stop_if_asked()
            return self.evaluate(name, split)  # submitit's handler has ignored the signal
        progress = self.progress
        entry = {**result.accuracy.as_dict(), "split": split.value, "step": progress.step}
        progress.evals[name] = entry
        if split == Split.validation and result.accuracy.correct > progress.best_correct:
            progress.best_correct = result.accuracy.correct
            progress.best_step = progress.step
            progress.evals["best"] = entry
        self.report.evaluation(name, result, progress.step)
        return result

    def save(self, *, must: bool = False) -> None:
        """A checkpoint of this step, and the summary so far; a full disk costs no more than it.

        Raises:
            CheckpointError: it cannot be written, but must: there is no later one.
        """
        progress, keep = self.progress, self.config.checkpoint.keep
        with self.phase("checkpoint"):
            self.count_wall_time()
            try:
                path = checkpoints.save(
                    self.checkpoints,
                    progress.step,
                    self.engine,
                    self.policy,
                    asdict(progress),
                    self.curriculum.state(),
                    self.following,
                )
            except CheckpointError as error:
                if must:
                    raise CheckpointError(
                        f"{error}; the last step is not saved: make room, and give the same "
                        "command again"
                    ) from error
                log.warning("step %d has no checkpoint, the run goes on: %s", progress.step, error)
                return
            self.saved_step = progress.step
            self.note_best()
            if self.engine.is_main:
                checkpoints.prune(self.checkpoints, keep, self.saved_best)
        self.report.checkpoint = str(path)
        self.report.summarize(progress, "running")

    def note_best(self) -> None:
        """The best checkpoint is the best step's, unless that could not be written."""
        best = self.progress.best_step
        if best is not None and (self.checkpoints / f"step_{best:06d}").is_dir():
            self.saved_best = best

    def resume(self, folder: Path, state: dict[str, Any]) -> None:
        """Go on from a checkpoint whose policy is already loaded."""
        checkpoints.restore(folder, state, self.engine)
        if folder.resolve().parent == self.checkpoints.resolve():
            self.saved_step = int(state["step"])
        try:
            self.progress = Progress(**state["progress"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}/state.json is of another version: {error}") from None
        self.note_best()
        self.curriculum.load(checkpoints.curriculum_state(folder))
        self.report.checkpoint = str(folder)

    def count_wall_time(self) -> None:
        """Add the time since the last count; a resumed run goes on counting."""
        now = time.perf_counter()
        self.progress.wall_s += now - self.counted_at
        self.counted_at = now

    def move_time(self, source: str, target: str, seconds: float) -> None:
        """Count a part of one phase as another."""
        phases = self.progress.phase_s
        phases[source] -= seconds
        phases[target] += seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of a block to a phase of the run; tell the watchdog."""
        started = time.perf_counter()
        place = f"step {self.progress.step + 1}, phase"
        self.engine.watchdog.enter(f"{place} {name}")
        try:
            yield
        finally:
            self.engine.synchronize()
            self.engine.watchdog.enter(f"{place} after {name}")
            self.progress.phase_s[name] += time.perf_counter() - started
