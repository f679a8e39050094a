"""Safetensors files: one, or several with an index, written and read by any number of ranks."""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from drift.common import terminal
from drift.common.errors import CheckpointError
from drift.common.files import read_json

MAX_SHARD_SIZE = "5GB"
Shape = tuple[int, ...]


def open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from None


def shard_of_tensor(folder: Path, stem: str = "model") -> dict[str, Path]:
    """Tensor name -> the file that holds it.

    Raises:
        CheckpointError: there are none, one is missing, or a file is truncated.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index, CheckpointError).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index} has no weight_map")
        for shard in sorted(set(weight_map.values())):
            if not (folder / shard).exists():
                raise CheckpointError(f"{folder} lacks the shard {shard} that its index names")
        return {name: folder / shard for name, shard in weight_map.items()}
    single = folder / f"{stem}.safetensors"
    if not single.exists():
        raise CheckpointError(f"{folder} has no {single.name} and no index of shards")
    with open_shard(single) as tensors:
        return dict.fromkeys(tensors.keys(), single)


def write_shards(
    folder: Path,
    stem: str,
    shapes: dict[str, Shape],
    dtype: torch.dtype,
    fetch: Callable[[str], Tensor],
    *,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    rank: int = 0,
    num_ranks: int = 1,
) -> None:
    """Write tensors to `<stem>.safetensors`, or to shards with an index, shared out over ranks.

    Every rank calls and fetches every tensor, in the same order; each keeps and writes its shards
    alone, one while the next is fetched. An error of the disk is raised when all are fetched, so
    that no rank waits for one that gave up.

    Args:
        folder: exists.
        stem: of the file names.
        shapes: of each tensor, by its name in the file.
        dtype: of the files.
        fetch: the whole tensor of a name; may be a collective.
        max_shard_size: bytes of one file.
        rank, num_ranks: of this process.
    """
    planned = {
        name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()
    }
    pattern = stem + "{suffix}.safetensors"
    plan = split_torch_state_dict_into_shards(
        planned, filename_pattern=pattern, max_shard_size=max_shard_size
    )
    with (
        terminal.bar(f"saving {stem} tensors", len(planned)) as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        written: list[Future[None]] = []
        for i, (file, names) in enumerate(plan.filename_to_tensors.items()):
            kept: dict[str, Tensor] = {}
            for name in names:
                tensor = fetch(name)
                if i % num_ranks == rank:
                    kept[name] = tensor.detach().to("cpu", dtype).contiguous()
                bar.advance()
            if kept:
                wait(written)  # no more than two shards are in memory
                written.append(writer.submit(save_file, kept, folder / file, {"format": "pt"}))
        for shard in written:
            shard.result()
    if plan.is_sharded and rank == 0:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        path = folder / f"{stem}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
