"""RL from verifiable rewards: `python -m drift.train [overrides]`."""

import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from drift.cli.command import run_command
from drift.cluster.launch import in_ranks
from drift.cluster.preemption import RequeuedExit
from drift.common.errors import CheckpointError, ConfigError, PreemptedError
from drift.common.files import digest, read_json, sole_user
from drift.config import AdvantageEstimator, ClusterConfig, Dtype, RunConfig, Split
from drift.config.checks_learner import idle_settings
from drift.runs.differences import BOOKKEEPING

if TYPE_CHECKING:
    from drift.cluster.engine import Engine
    from drift.training.trainer import Trainer

log = logging.getLogger("drift")
Resumed = tuple[Path, dict[str, Any]]  # a checkpoint's folder and its state
AUTOMATIC = ("auto", "never")  # values of `resume` that are no folder
Overlap = dict[str, dict[str, object]]  # of each evaluation split with train
FREE = (  # settings of a run that may change on its way: nothing learns by them, or it only goes on
    *BOOKKEEPING, "num_steps", "max_training_s", "resume", "output_dir", "tracking.",
    "rollout.max_rows", "optim.rows_per_forward",
)  # fmt: skip


def flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Nested settings as `group.field` pairs, for MLflow's params."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value


def settings_of(config: RunConfig) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)  # type: ignore


def digests_of(trainer: "Trainer") -> dict[str, Any]:
    from drift.runs.manifest import data_digests

    return data_digests({s.value: p.examples for s, p in trainer.problems.items()})


def changes(folder: Path, now: dict[str, Any]) -> dict[str, Any]:
    """What the run of this folder had otherwise, data last: `{"optim.lr": 0.0002}` is how it was.

    Args:
        folder: of the run, with what was started there before, if anything.
        now: flat settings, and digests of the data under `data`.
    """
    if not (folder / "manifest.json").exists():
        return {}
    settings = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    before = dict(flat("", settings))
    before |= flat("data", read_json(folder / "manifest.json")["data"])
    keys = sorted(before.keys() | now.keys(), key=lambda key: (key.startswith("data."), key))
    return {key: before.get(key) for key in keys if before.get(key) != now.get(key)}


def is_another(folder: Path, now: dict[str, Any], *, resumed: bool) -> bool:
    """Whether the run that was in this folder had other settings or data; names the changes.

    Args:
        folder, now: as `changes` takes them.
        resumed: the run goes on, so that it stays the same if only what is `FREE` changes.
    """
    changed = changes(folder, now)
    for key, before in changed.items():
        how = "resumed" if resumed else "begun again"
        log.warning("%s with %s=%s, was %s", how, key, now.get(key), before)
    return any(not (resumed and key.startswith(FREE)) for key in changed)


def refuse_changes(config: RunConfig, trainer: "Trainer") -> None:
    """A finished run's numbers are those of its own settings.

    Raises:
        ConfigError: others are asked for, or fewer steps than are done.
    """
    folder, done = Path(config.output_dir), trainer.progress.step
    now = dict(flat("", settings_of(config))) | dict(flat("data", digests_of(trainer)))
    changed = {k: v for k, v in changes(folder, now).items() if not k.startswith(FREE)}
    if config.num_steps < done:
        changed = {"num_steps": done} | changed
    for key, before in changed.items():
        raise ConfigError(
            f"{folder} holds a finished run with {key}={before}, not {now.get(key)}; "
            "choose another hydra.run.dir"
        )


def checkpoint_to_resume(config: RunConfig, engine: "Engine") -> Resumed | None:
    """What `resume` asks for: the newest whole checkpoint of this folder, a given one, or none.

    The same command again, by hand or by SLURM, goes on where the run is: a given checkpoint is
    where it began.

    Raises:
        CheckpointError: a given one is not there or not whole, or all of this folder are damaged.
        ConfigError: resume=never, but the folder holds a run that would be lost.
    """
    from drift.runs import checkpoints

    own = Path(config.output_dir) / "checkpoints"
    if config.resume == "never" and not engine.agree(is_requeued()):
        if any(own.glob("step_*")):
            raise ConfigError(
                f"resume=never, but {config.output_dir} holds a run; "
                "use resume=auto or another hydra.run.dir"
            )
        return None
    automatic = config.resume in AUTOMATIC
    if automatic or engine.agree(began_so(config)):
        found = checkpoints.newest(own, engine)
        if found or automatic:
            return found
    folder = Path(config.resume)
    if not folder.is_dir():
        raise CheckpointError(
            f"resume={config.resume} is not a folder; use auto, never or a checkpoint's folder"
        )
    return folder, checkpoints.check(folder, engine)


def began_so(config: RunConfig) -> bool:
    """Whether the run in this folder was begun with the same `resume`."""
    path = Path(config.output_dir) / "config.yaml"
    return path.exists() and OmegaConf.select(OmegaConf.load(path), "resume") == config.resume


def is_requeued() -> bool:
    """Whether SLURM has started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def build(
    config: RunConfig, engine: "Engine", resumed: Resumed | None
) -> tuple["Trainer", Overlap]:
    """Everything a run needs, the quick checks first; writes nothing.

    Returns:
        The trainer, and what `contamination.check_overlap` found.
    """
    from drift.policy import lora
    from drift.policy.base import VALUE_HEAD
    from drift.policy.loading import find_checkpoint, load_model, torch_dtype
    from drift.rollout.evaluate import load_problems
    from drift.runs import checkpoints
    from drift.runs.tracking import Tracker
    from drift.tasks import build_task
    from drift.tasks.contamination import check_overlap
    from drift.training.report import Report
    from drift.training.trainer import Trainer

    model = config.model
    origin = find_checkpoint(model.path, model.revision)
    task = build_task(config.task, config.data.on_error)
    examples = {split: task.examples(split) for split in Split}
    overlap = check_overlap(task, examples, config.data.max_overlap)
    engine.share(config.rollout.prompts_per_step, "rollout.prompts_per_step")

    engine.watchdog.start()  # not before what may be a download
    path = str(resumed[0] / "policy") if resumed else None
    policy = load_model(model, device=engine.device, path=path, trained=engine.partition)
    reference = None
    if config.objective.kl_coef:  # the base of a new adapter is the run's start: no second copy
        reference = policy
        if not policy.adapter or (origin / lora.CONFIG).exists():
            held = replace(engine.partition, zero=None)  # as the policy is: the KL begins at 0
            reference = load_model(model, device=engine.device, trained=held)
            reference.requires_grad_(False)
    problems = {split: load_problems(policy, examples[split], split, config) for split in Split}
    objective = config.objective
    if objective.advantage == AdvantageEstimator.gae:
        policy.attach_value_head()
    num_updates = config.num_steps * objective.num_updates
    engine.prepare(policy, config.optim, num_updates, lrs={VALUE_HEAD: objective.value.lr})
    if engine.partition.dtype != torch_dtype(Dtype.float32):
        folder = find_checkpoint(path) if path else origin
        checkpoints.restore_master_weights(folder, engine, policy)
    tracker = Tracker(config.tracking, Path(config.output_dir))
    trainer = Trainer(
        config, engine=engine, policy=policy, reference=reference, task=task, problems=problems,
        report=Report(config, engine, tracker),
    )  # fmt: skip
    if resumed:
        trainer.resume(*resumed)
        log.info("resumed %s at step %d", resumed[0], trainer.progress.step)
    return trainer, overlap


def run(config: RunConfig) -> None:
    """Train, or go on where the run folder's newest checkpoint is."""
    from drift.cluster.engine import Engine

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


def train(config: RunConfig, engine: "Engine") -> None:
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
            trainer.report.farewell(trainer.progress)
        else:
            if engine.num_ranks > 1:
                log.info("%s", place_line(config, engine))
            if engine.is_main:
                for words in idle_settings(config):
                    log.warning("%s", words)
                start(config, trainer, overlap, resumed)
            engine.barrier()
            follow(trainer)


def place_line(config: RunConfig, engine: "Engine") -> str:
    """`8 ranks (started by torchrun), ZeRO-3: each completes 4 of 32 prompts, 8 times`"""
    prompts, size = config.rollout.prompts_per_step, config.rollout.group_size
    kind = f"ZeRO-{engine.stage}" if engine.stage else "whole weights on each"
    return (
        f"{engine.num_ranks} ranks (started by {engine.place.started_by}), {kind}: each completes "
        f"{prompts // engine.num_ranks} of {prompts} prompts, {size} times"
    )


def start(config: RunConfig, trainer: "Trainer", overlap: Overlap, resumed: Resumed | None) -> None:
    """Write what the run is made of, and open its MLflow run, a new one if it is another run."""
    from drift.rollout.prompts import render
    from drift.runs import checkpoints
    from drift.runs.manifest import write_origin

    folder, tracker = Path(config.output_dir), trainer.report.tracker
    params, digests = dict(flat("", settings_of(config))), digests_of(trainer)
    if resumed:
        checkpoints.drop_after(folder / "checkpoints", trainer.progress.step)
    other = is_another(folder, params | dict(flat("data", digests)), resumed=resumed is not None)
    if other or (resumed and resumed[0] == Path(config.resume)):  # or another branch
        tracker.forget()
    (folder / "evals").mkdir(exist_ok=True)
    first = trainer.problems[Split.train].examples[0]
    prompt = render(trainer.policy, config.task, first)
    facts = {"data": digests, "overlap": overlap, "skipped_records": trainer.task.skipped}
    write_origin(config, facts, prompt)
    name = f"{config.model.name}-{config.task.name}-{config.masking.strategy.value}"
    done = trainer.progress.logged_step if resumed else -1
    tracker.start(name, params, {"seed": str(config.seed)}, done)
    tracker.log_files([folder / "config.yaml", folder / "manifest.json"])


def follow(trainer: "Trainer") -> None:
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
    report.farewell(trainer.progress)


if __name__ == "__main__":
    run_command("train", in_ranks("train", run))
