"""A run: everything it needs is built, then it trains, and its end is recorded."""

import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from drift.cluster.engine import Engine
from drift.cluster.preemption import RequeuedExit
from drift.common.errors import CheckpointError, PreemptedError
from drift.common.files import digest, read_json, sole_user
from drift.config.checks import idle_settings
from drift.config.cluster import ClusterConfig
from drift.config.commands import RunConfig
from drift.config.model import Dtype
from drift.config.objective import AdvantageEstimator, KLReference
from drift.config.task import Split
from drift.policy import lora
from drift.policy.base import VALUE_HEAD, Policy
from drift.policy.loading import find_checkpoint, load_model, torch_dtype
from drift.rollout.evaluate import load_problems
from drift.rollout.prompts import render
from drift.runs import checkpoints
from drift.runs.differences import flat_settings
from drift.runs.manifest import choices_of, settings_of, write_origin
from drift.runs.tracking import Tracker
from drift.tasks import build_task
from drift.tasks.contamination import check_overlap
from drift.training.report import Report
from drift.training.resume import (
    Resumed,
    checkpoint_to_resume,
    digests_of,
    flat_data,
    is_another,
    refuse_changes,
)
from drift.training.trainer import Trainer

log = logging.getLogger("drift")

Overlap = dict[str, dict[str, object]]  # of each evaluation split with train


def build(config: RunConfig, engine: Engine, resumed: Resumed | None) -> tuple[Trainer, Overlap]:
    """Everything a run needs, the quick checks first; writes nothing.

    Returns:
        The trainer, and what `contamination.check_overlap` found.
    """

    model = config.model
    origin = find_checkpoint(model.path, model.revision)
    task = build_task(config.task, config.data.on_error)
    examples = {split: task.examples(split) for split in Split}
    overlap = check_overlap(task, examples, config.data.max_overlap)
    engine.share(config.rollout.prompts_per_step, "rollout.prompts_per_step")

    engine.watchdog.start()  # not before what may be a download
    path = str(resumed[0] / "policy") if resumed else None
    policy = load_model(model, device=engine.device, path=path, trained=engine.partition)
    reference = load_reference(config, engine, policy, origin, resumed)
    problems = {split: load_problems(policy, examples[split], split, config) for split in Split}
    objective = config.objective
    if objective.advantage == AdvantageEstimator.gae:
        policy.attach_value_head()
    num_updates = config.num_steps * objective.num_steps
    engine.prepare(policy, config.optim, num_updates, lrs={VALUE_HEAD: objective.value.lr})
    if engine.partition.dtype != torch_dtype(Dtype.float32):
        folder = find_checkpoint(path) if path else origin
        checkpoints.restore_master_weights(folder, engine, policy)
    tracker = Tracker(config.tracking, Path(config.output_dir))
    trainer = Trainer(
        config,
        engine=engine,
        policy=policy,
        reference=reference,
        task=task,
        problems=problems,
        report=Report(config, engine, tracker),
    )
    if resumed:
        trainer.resume(*resumed)
        log.info("resumed %s at step %d", resumed[0], trainer.progress.step)
    return trainer, overlap


def load_reference(
    config: RunConfig, engine: Engine, policy: Policy, origin: Path, resumed: Resumed | None
) -> Policy | None:
    """The model of the KL's reference; None where none is needed."""
    objective = config.objective
    if not objective.has_reference:
        return None
    if policy.adapter and not (origin / lora.CONFIG).exists():
        return policy  # the base of a new adapter is the run's start: no second copy
    follows = objective.kl_reference == KLReference.follow
    path = str(saved_reference(resumed[0])) if follows and resumed else None
    held = replace(engine.partition, zero=None)  # as the policy is: the KL begins at 0
    reference = load_model(config.model, device=engine.device, path=path, trained=held)
    return reference.requires_grad_(False)


def saved_reference(checkpoint: Path) -> Path:
    """The folder of a checkpoint's following reference.

    Raises:
        CheckpointError: its run had no such reference.
    """
    folder = checkpoint / checkpoints.REFERENCE
    if not folder.is_dir():
        raise CheckpointError(
            f"objective.kl_reference=follow, but {checkpoint} has no {checkpoints.REFERENCE}/ (its "
            "run had another kl_reference or none); resume with that, or start a new run with "
            f"model.path={checkpoint / 'policy'}"
        )
    return folder


def run(config: RunConfig) -> None:
    """Train, or go on where the run folder's newest checkpoint is."""
    engine = Engine(config.cluster, config.model.dtype, max_grad_norm=config.optim.max_grad_norm)
    if not engine.is_main:  # under torchrun and srun all ranks share a terminal and a log
        log.setLevel(logging.WARNING)
    config.output_dir = engine.agree(config.output_dir)
    if engine.num_ranks > 1:
        settings = settings_of(replace(config, cluster=ClusterConfig()))
        engine.assert_same("their settings", digest(settings))
    try:
        train(config, engine)
    finally:
        engine.watchdog.stop()  # also where the run failed: the process may go on with another
    engine.close()


def train(config: RunConfig, engine: Engine) -> None:
    """`run` in an engine."""
    folder = Path(config.output_dir)
    taken = f"{folder} is in use by another process; choose another hydra.run.dir"
    with sole_user(folder, taken) if engine.is_main else nullcontext():
        resumed = checkpoint_to_resume(config, engine)
        trainer, overlap = build(config, engine, resumed)
        if engine.num_ranks > 1:
            ids = {split.value: problems.ids for split, problems in trainer.problems.items()}
            engine.assert_same("their data", digest(ids))
        told = read_json(folder / "summary.json", missing_ok=True).get("status") == "finished"
        if engine.agree(told) and trainer.finished:  # else killed before it could tell its end
            refuse_changes(config, trainer)
            log.info("%s is finished", folder)
            trainer.report.log_end(trainer.progress)
        else:
            if engine.num_ranks > 1:
                log.info("%s", place_line(config, engine))
            if engine.is_main:
                for words in idle_settings(config):
                    log.warning("%s", words)
                start(config, trainer, overlap, resumed)
            engine.barrier()
            follow(trainer)


def place_line(config: RunConfig, engine: Engine) -> str:
    """`8 ranks (started by torchrun), ZeRO-3: each completes 4 of 32 prompts, 8 times`"""
    prompts, size = config.rollout.prompts_per_step, config.rollout.group_size
    kind = f"ZeRO-{engine.stage}" if engine.stage else "whole weights on each"
    return (
        f"{engine.num_ranks} ranks (started by {engine.place.started_by}), {kind}: each completes "
        f"{prompts // engine.num_ranks} of {prompts} prompts, {size} times"
    )


def start(config: RunConfig, trainer: Trainer, overlap: Overlap, resumed: Resumed | None) -> None:
    """Write what the run is made of, and open its MLflow run, a new one if it is another run."""
    folder, tracker = Path(config.output_dir), trainer.report.tracker
    params, digests = flat_settings(settings_of(config)), digests_of(trainer)
    if resumed:
        checkpoints.drop_after(folder / "checkpoints", trainer.progress.step)
    other = is_another(folder, params | flat_data(digests), resumed=resumed is not None)
    if other or (resumed and resumed[0] == Path(config.resume)):  # or another branch
        tracker.forget()
    (folder / "evals").mkdir(exist_ok=True)
    first = trainer.problems[Split.train].examples[0]
    prompt = render(trainer.policy, config.task, first)
    facts = {"data": digests, "overlap": overlap, "skipped_records": trainer.task.skipped}
    write_origin(config, facts, prompt)
    chosen = choices_of(config)
    name = "-".join(chosen[group] for group in ("model", "task", "masking"))
    done = trainer.progress.logged_step if resumed else -1
    tracker.start(name, params, {"seed": str(config.seed)}, done)
    tracker.log_files([folder / "config.yaml", folder / "manifest.json"])


def follow(trainer: Trainer) -> None:
    """Train; whatever happens, say how it ended in summary.json and MLflow."""
    report, tracker = trainer.report, trainer.report.tracker
    try:
        trainer.fit()
    except BaseException as error:
        status = "killed" if isinstance(error, KeyboardInterrupt) else "failed"
        if isinstance(error, PreemptedError | RequeuedExit):
            status = "preempted"
        if not trainer.engine.is_main:
            raise
        report.summarize(trainer.progress, status, f"{type(error).__name__}: {error}")
        tracker.log_files([report.folder / "summary.json"])
        tracker.finish("KILLED" if status == "preempted" else status.upper())
        raise
    if not trainer.engine.is_main:
        return
    report.summarize(trainer.progress, "finished")
    tracker.log_table("samples", report.samples_table())
    tracker.log_files([report.folder / "summary.json", report.folder / "metrics.jsonl"])
    tracker.finish("FINISHED")
    report.log_end(trainer.progress)
