"""Checkpoints: whole or not there, checked when read, taken up where they were written.

A checkpoint is a folder `checkpoints/step_000040/` with the policy in its family's own format
(`policy/`), the engine's state (`trainer.pt`) and `state.json`: the trainer's progress, and the
size and SHA-256 of every file. It is written beside under another name, flushed, and renamed.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

from drift.engine import Engine
from drift.errors import CheckpointError
from drift.files import file_digest, flush, write_json
from drift.policy.base import Policy
from drift.policy.loading import read_json, save_policy
from drift.policy.lora import save_adapter

log = logging.getLogger("drift")


def save(folder: Path, step: int, engine: Engine, policy: Policy, progress: dict[str, Any]) -> Path:
    """Write `folder/step_<step>`; what stood there under that name is replaced at the end.

    Args:
        folder: the run's checkpoints.
        step: optimizer steps done.
        engine, policy: what to save.
        progress: the trainer's own state, plain JSON.
    """
    target = folder / f"step_{step:06d}"
    beside = folder / f".writing-step_{step:06d}"
    for leftover in folder.glob(".*-step_*"):  # of a run that was killed while it saved
        shutil.rmtree(leftover)
    beside.mkdir(parents=True)
    if policy.adapter is None:
        save_policy(policy, beside / "policy")
    else:
        save_adapter(policy, beside / "policy")
    engine.save_state(beside)
    files = sorted(path for path in beside.rglob("*") if path.is_file())
    for path in files:
        flush(path)
    digests = {str(path.relative_to(beside)): file_digest(path) for path in files}
    write_json(beside / "state.json", {"step": step, "progress": progress, "files": digests})
    flush(beside)
    replaced = folder / f".old-step_{step:06d}"
    if target.exists():
        target.rename(replaced)
    beside.rename(target)
    flush(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def check(folder: Path) -> dict[str, Any]:
    """The state of a whole checkpoint.

    Raises:
        CheckpointError: a file is missing or is not what was written.
    """
    state = read_json(folder / "state.json")
    if not isinstance(state.get("files"), dict) or "trainer.pt" not in state["files"]:
        raise CheckpointError(f"{folder} is not a checkpoint of a run: state.json lists no files")
    for name, digest in state["files"].items():
        path = folder / name
        if not path.is_file() or file_digest(path) != digest:
            raise CheckpointError(f"{folder} is damaged: {name} is not what was written")
    return state


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its state; a damaged one is named in a warning."""
    for path in sorted(folder.glob("step_*"), reverse=True):
        try:
            return path, check(path)
        except CheckpointError as error:
            log.warning("%s; trying the checkpoint before it", error)
    return None


def drop_after(folder: Path, step: int) -> None:
    """Remove the checkpoints behind the one that is resumed: their steps are done again."""
    for path in folder.glob("step_*"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best."""
    for path in sorted(folder.glob("step_*"), reverse=True)[keep:]:
        if best_step is None or path.name != f"step_{best_step:06d}":
            shutil.rmtree(path)
