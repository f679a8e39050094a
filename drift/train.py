"""RL from verifiable rewards: `python -m drift.train [overrides]`."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from drift.cli import run_command
from drift.config import RunConfig
from drift.errors import CheckpointError

log = logging.getLogger("drift")


def flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Nested settings as `group.field` pairs, for MLflow's params."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value


def warn_of_changes(path: Path, settings: dict[str, Any]) -> None:
    """Say which settings of a resumed run are not those it began with."""
    if not path.exists():
        return
    before = dict(flat("", OmegaConf.to_container(OmegaConf.load(path))))
    for key in sorted(before.keys() | settings.keys()):
        if before.get(key) != settings.get(key):
            log.warning("resumed with %s=%s, was %s", key, settings.get(key), before.get(key))


def checkpoint_to_resume(config: RunConfig) -> tuple[Path, dict[str, Any]] | None:
    """What `resume` asks for: the newest whole checkpoint of this folder, a given one, or none."""
    from drift import checkpointing

    if config.resume == "never":
        return None
    if config.resume == "auto":
        return checkpointing.newest(Path(config.output_dir) / "checkpoints")
    folder = Path(config.resume)
    if not folder.is_dir():
        raise CheckpointError(
            f"resume={config.resume} is not a folder; use auto, never or a checkpoint's folder"
        )
    return folder, checkpointing.check(folder)


def run(config: RunConfig) -> None:
    """Build everything, then train; nothing is written before everything is known to be there."""
    from drift.checkpointing import write_json
    from drift.engine import Engine
    from drift.evaluation import load_problems
    from drift.manifest import build_manifest
    from drift.policy.loading import load_policy
    from drift.report import Report
    from drift.tasks import Split, build_task
    from drift.tracking import Tracker
    from drift.trainer import Trainer

    engine = Engine(config.cluster, config.model.dtype)
    resumed = checkpoint_to_resume(config)
    model = config.model
    folder = Path(config.output_dir)

    def load(path: str) -> Any:
        return load_policy(path, family=model.family, revision=model.revision, device=engine.device)

    policy = load(str(resumed[0] / "policy") if resumed else model.path)
    reference = load(model.path).requires_grad_(False) if config.objective.kl_coef else None
    task = build_task(config.task)
    problems = {split.value: load_problems(policy, task, split, config) for split in Split}
    engine.prepare(policy, config.optim, config.num_steps)

    settings = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    if resumed:
        warn_of_changes(folder / "config.yaml", dict(flat("", settings)))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evals").mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    splits = {name: split.examples for name, split in problems.items()}
    write_json(folder / "manifest.json", build_manifest(config.seed, splits))
    tracker = Tracker(config.tracking, folder)
    trainer = Trainer(
        config, engine=engine, policy=policy, reference=reference, task=task, problems=problems,
        report=Report(config, engine, tracker),
    )  # fmt: skip
    if resumed:
        trainer.resume(*resumed)
        log.info("resumed %s at step %d", resumed[0], trainer.progress.step)
    name = f"{model.name}-{config.task.name}-{config.masking.strategy.value}"
    done = trainer.progress.step if resumed else -1
    tracker.start(name, dict(flat("", settings)), {"seed": str(config.seed)}, done)
    follow(trainer, tracker, folder)


def follow(trainer: Any, tracker: Any, folder: Path) -> None:
    """Train; whatever happens, say how it ended in summary.json and MLflow."""
    files = [folder / name for name in ("config.yaml", "manifest.json", "summary.json")]
    try:
        trainer.fit()
    except BaseException as error:
        status = "killed" if isinstance(error, KeyboardInterrupt) else "failed"
        trainer.report.summarize(trainer.progress, status, f"{type(error).__name__}: {error}")
        tracker.finish(status.upper(), files)
        raise
    trainer.report.summarize(trainer.progress, "finished")
    tracker.log_table("samples", trainer.report.samples_table())
    tracker.finish("FINISHED", [*files, folder / "metrics.jsonl"])
    trainer.report.farewell(trainer.progress)


if __name__ == "__main__":
    run_command("train", run)
