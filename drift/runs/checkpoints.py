"""Checkpoints: whole or not there, checked when read, taken up where they were written.

A checkpoint is a folder `checkpoints/step_000040/` with the policy in its family's own format
(`policy/`), AdamW's state in safetensors under our names of the parameters, a curriculum's pass
rates, and `state.json`: the trainer's progress, and the size and SHA-256 of every file. It is
written beside under another name, flushed, and renamed. Every rank writes and checks its share of
the files. Nothing in it depends on the number of ranks or the ZeRO stage, and nothing is pickled.
"""

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from drift.cluster import zero
from drift.cluster.engine import Engine
from drift.common import terminal
from drift.common.errors import CheckpointError
from drift.common.files import (
    file_digest,
    flush,
    make_room,
    out_of_the_way,
    publish,
    read_json,
    write_json,
)
from drift.policy import lora
from drift.policy.base import VALUE_HEAD, Policy
from drift.policy.loading import save_policy, stored_weights
from drift.policy.shards import Shape, open_shard, shard_of_tensor, write_shards

OPTIMIZER = "optimizer"  # stem of the files of AdamW's state
CURRICULUM = "curriculum.safetensors"
REFERENCE = "reference"  # folder of a reference that follows the policy
HEAD = "value_head"  # of the value head's, which belongs to no saved policy
BACKBONE = "backbone."  # of a policy's parameter names
log = logging.getLogger("drift")


def save(
    folder: Path,
    step: int,
    engine: Engine,
    policy: Policy,
    progress: dict[str, Any],
    curriculum: dict[str, Tensor],
    reference: Policy | None = None,
) -> Path:
    """Write `folder/step_<step>`; what stood there under that name is replaced at the end.

    Args:
        folder: the run's checkpoints.
        step: optimizer steps done.
        engine, policy: what to save; every rank calls.
        progress: the trainer's own state, plain JSON.
        curriculum: the state of the choice of prompts, the same on every rank; may be empty.
        reference: of the KL, where it follows the policy.

    Raises:
        CheckpointError: some rank could not write; the checkpoints before it are as they were.
    """
    target = folder / f"step_{step:06d}"
    beside = folder / f".writing-step_{step:06d}"
    digests: dict[str, Any] = {}
    together(engine, beside, lambda: make_room(beside), main_only=True)
    together(engine, beside, lambda: write_weights(beside / "policy", engine, policy))
    if reference is not None:
        together(engine, beside, lambda: write_reference(beside / REFERENCE, engine, reference))
    together(engine, beside, lambda: write_head(beside, engine))
    together(engine, beside, lambda: write_moments(beside, engine))
    if curriculum:
        file = beside / CURRICULUM
        together(engine, beside, lambda: save_file(curriculum, file), main_only=True)
    together(engine, beside, lambda: digests.update(flushed_digests(beside, engine)))
    files = {name: digest for part in engine.gather([digests]) for name, digest in part.items()}
    state = {"step": step, "progress": progress, "engine": engine.progress(), "files": files}
    together(engine, beside, lambda: write_json(beside / "state.json", state), main_only=True)
    together(engine, beside, lambda: publish(beside, target), main_only=True)
    return target


def together(
    engine: Engine, beside: Path, work: Callable[[], object], *, main_only: bool = False
) -> None:
    """Do a part of the writing on every rank; where one fails, all clean up and stop."""
    fault: str | None = None
    try:
        if engine.is_main or not main_only:
            work()
    except Exception as error:  # safetensors wraps the operating system's errors in its own
        if not isinstance(error, OSError) and "I/O error" not in str(error):
            raise
        fault = str(error)
    faults = [text for text in engine.gather([fault]) if text is not None]
    if faults:
        if engine.is_main:
            shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(f"{beside.parent}: {faults[0]}")


def shard_limit(engine: Engine) -> int:
    """Bytes of a file: a large model has a share for every rank, a small one a single file."""
    size = sum(4 * math.prod(shape) for shape in engine.shapes.values())
    return min(5 * 10**9, max(size // engine.num_ranks, 10**8))


def write_weights(folder: Path, engine: Engine, policy: Policy) -> None:
    """The trained weights in float32; each rank its share."""
    if policy.adapter is None:
        save_policy(
            policy,
            folder,
            shard_limit(engine),
            fetch=lambda name: engine.full(BACKBONE + name, zero.WEIGHT),
            rank=engine.rank,
            num_ranks=engine.num_ranks,
        )
        return
    found = {
        official: engine.full(name, zero.WEIGHT)
        for official, name in factor_names(engine, policy).items()
    }
    if engine.is_main:
        lora.save_adapter(policy, folder, found)


def write_reference(folder: Path, engine: Engine, reference: Policy) -> None:
    """A reference that follows the policy, whole on each rank; each writes its share."""
    save_policy(
        reference, folder, shard_limit(engine), rank=engine.rank, num_ranks=engine.num_ranks
    )


def head_shapes(engine: Engine) -> dict[str, Shape]:
    """Of the value head's tensors; nothing where there is none."""
    return {n: shape for n, shape in engine.shapes.items() if n.startswith(VALUE_HEAD)}


def write_head(folder: Path, engine: Engine) -> None:
    """The value head, if there is one, in float32."""
    shapes = head_shapes(engine)
    if shapes:
        write_shards(
            folder,
            HEAD,
            shapes,
            torch.float32,
            lambda name: engine.full(name, zero.WEIGHT),
            rank=engine.rank,
            num_ranks=engine.num_ranks,
        )


def factor_names(engine: Engine, policy: Policy) -> dict[str, str]:
    """An adapter's tensors: the name in peft's file -> the engine's."""
    names = {id(parameter): name for name, parameter in engine.trained.items()}
    return {official: names[id(factor)] for official, factor in lora.factors(policy).items()}


def write_moments(folder: Path, engine: Engine) -> None:
    """AdamW's state; each rank its share."""
    shapes = {
        f"{key}.{name}": shape for key in zero.MOMENTS for name, shape in engine.shapes.items()
    }

    def moment(name: str) -> Tensor:
        key, _, parameter = name.partition(".")
        return engine.full(parameter, key)

    write_shards(
        folder,
        OPTIMIZER,
        shapes,
        torch.float32,
        moment,
        max_shard_size=shard_limit(engine),
        rank=engine.rank,
        num_ranks=engine.num_ranks,
    )


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def flushed_digests(beside: Path, engine: Engine) -> dict[str, Any]:
    """Of this rank's share of the files, which are then on the disk."""
    digests: dict[str, Any] = {}
    for name in files_in(beside)[engine.rank :: engine.num_ranks]:
        flush(beside / name)
        digests[name] = file_digest(beside / name)
        terminal.beat()
    return digests


def remove(path: Path) -> None:
    """Remove a checkpoint: its name at once, its files now or, if they are held, at a later save.

    NFS keeps a file that somebody has open, and so its folder.
    """
    nameless = out_of_the_way(path)
    try:
        shutil.rmtree(nameless)
    except OSError as error:
        log.warning("%s is not gone, the next save tries again: %s", nameless, error)


def check(folder: Path, engine: Engine | None = None) -> dict[str, Any]:
    """The state of a whole checkpoint; with an engine each rank reads its share.

    Raises:
        CheckpointError: a file is missing or is not what was written.
    """
    state = read_json(folder / "state.json", CheckpointError)
    files = state.get("files")
    if not isinstance(files, dict) or not any(name.startswith(OPTIMIZER) for name in files):
        raise CheckpointError(f"{folder} is not a checkpoint of a run: state.json lists no files")
    rank, num_ranks = (engine.rank, engine.num_ranks) if engine else (0, 1)
    mine = sorted(files)[rank::num_ranks]
    damaged: list[str] = []
    with terminal.bar("checking files", len(mine)) as bar:
        for name in mine:
            if not (folder / name).is_file() or file_digest(folder / name) != files[name]:
                damaged.append(name)
            bar.advance()
    if engine:
        damaged = engine.gather(damaged)
    if damaged:
        raise CheckpointError(f"{folder} is damaged: {damaged[0]} is not what was written")
    return state


def newest(folder: Path, engine: Engine | None = None) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its state; a damaged one is named in a warning.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    found = sorted(folder.glob("step_*"), reverse=True)
    found = engine.agree(found) if engine else found
    for path in found:
        try:
            return path, check(path, engine)
        except CheckpointError as error:
            if path == found[-1]:
                raise CheckpointError(
                    f"{error}, and no other checkpoint of the run is whole; go on from one "
                    "elsewhere with resume=FOLDER, or begin again in another hydra.run.dir"
                ) from None
            log.warning("%s; trying the checkpoint before it", error)
    return None


@torch.no_grad()
def restore(folder: Path, state: dict[str, Any], engine: Engine) -> None:
    """Take up AdamW's state and the value head; the policy is loaded already.

    The settings stay those of this run.

    Raises:
        CheckpointError: the tensors are not those of this policy.
    """
    shards = shard_of_tensor(folder, OPTIMIZER)
    wanted = {f"{key}.{name}" for key in zero.MOMENTS for name in engine.shapes}
    if wanted != shards.keys():
        odd = min(wanted ^ shards.keys())
        raise CheckpointError(f"{folder} has another optimizer's state: tensor {odd} does not fit")
    for shard in sorted(set(shards.values())):
        with open_shard(shard) as tensors:
            for name in sorted(tensors.keys()):
                key, _, parameter = name.partition(".")
                value = tensors.get_tensor(name)
                if tuple(value.shape) != engine.shapes[parameter]:
                    raise CheckpointError(
                        f"{shard}: {name} is {list(value.shape)}, of another size"
                    )
                engine.put(parameter, key, value)
    heads = shard_of_tensor(folder, HEAD) if head_shapes(engine) else {}
    for name, shard in heads.items():
        with open_shard(shard) as tensors:
            engine.put(name, zero.WEIGHT, tensors.get_tensor(name))
    try:
        engine.set_progress(**state["engine"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}/state.json is of another version: {error}") from None


def curriculum_state(folder: Path) -> dict[str, Tensor]:
    """The state of the choice of prompts; empty where the run had none to save."""
    file = folder / CURRICULUM
    return load_file(file) if file.exists() else {}


@torch.no_grad()
def restore_master_weights(folder: Path, engine: Engine, policy: Policy) -> None:
    """Give the optimizer what bfloat16 weights lost of float32 files (ZeRO with bfloat16)."""
    if policy.adapter is not None:
        if not (folder / lora.CONFIG).exists():
            return  # the adapter is new
        saved = lora.read_factors(folder)
        for official, name in factor_names(engine, policy).items():
            engine.put(name, zero.WEIGHT, saved[official])
        return
    for name, dtype, read in stored_weights(policy.backbone.config, policy.family, folder):
        if dtype == "F32":
            engine.put(BACKBONE + name, zero.WEIGHT, read())


def drop_after(folder: Path, step: int) -> None:
    """Remove the checkpoints behind the one that is resumed: their steps are done again."""
    for path in sorted(folder.glob("step_*"), reverse=True):  # after a kill the rest is one run
        if int(path.name.removeprefix("step_")) > step:
            remove(path)


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best."""
    for path in sorted(folder.glob("step_*"), reverse=True)[keep:]:
        if best_step is None or path.name != f"step_{best_step:06d}":
            remove(path)
