"""One cell of an evaluation grid: a checkpoint under a protocol, saved as it goes.

A cell's folder holds `completions.jsonl`, to which each chunk of problems is added, `cell.json`,
which says how much of it is whole, the rows of the trace page, and what tracking needs. A cell that
was interrupted goes on behind its last whole chunk; a finished one is not run again.
"""

import hashlib
import inspect
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.errors import CheckpointError, DataError
from drift.common.files import digest, flush, read_json, sole_user, survives_a_full_disk, write_json
from drift.common.types import Example, Rollout
from drift.config.commands import EvalRunConfig
from drift.config.rollout import ROLLOUTS
from drift.policy.base import Policy
from drift.rollout.evaluate import Completion, Problems, complete
from drift.runs.manifest import data_digest, installed
from drift.tasks import Task
from drift.traces.page import NUM_ALTERNATIVES, TraceRow, View, trace_rows
from drift.traces.rows import pick_rows

# settings without influence on a completion or its grade
COST_ONLY = {"prompts_per_step", "group_size", "weights", "max_rows"}
NOT_GRADING = {"name", "prompt", "system", "files", "reward", "workers", "gen_length"}
NOT_GRADING |= {"block_length", "long_prompts", "train_size", "validation_size", "test_size"}
GRADERS = ("tasks", "graders", "sandbox")  # folders of drift/ whose code decides a grade
CELL = "cell.json"
END_RULE = "a row ends with the first block that holds a stop token"
log = logging.getLogger("drift")


def protocol(config: EvalRunConfig, task: Task, examples: list[Example]) -> dict[str, Any]:
    """Everything that decides a completion and its grade but the checkpoint.

    Args:
        config: of the command.
        task: grades.
        examples: the split's problems that are evaluated.
    """
    settings = asdict(config.task)
    rollout = {"remasking": ROLLOUTS.name(config.rollout), **asdict(config.rollout)}
    kind = type(task)
    content: dict[str, Any] = {
        "task": config.task.name,
        "split": config.split,
        "problems": data_digest(examples),
        "prompt": config.task.prompt,
        "system": config.task.system,
        "grader": f"{kind.__module__}.{kind.__qualname__}",
        "grader_code": grader_code(kind),
        "grader_packages": {name: installed(name) for name in kind.packages},
        "grading": {key: settings[key] for key in sorted(settings.keys() - NOT_GRADING)},
        "decoding": {key: rollout[key] for key in sorted(rollout.keys() - COST_ONLY)},
        "end_rule": END_RULE,
        "samples": config.eval.samples,
        "seed": config.seed,
        "dtype": config.model.dtype,
        "attention": config.model.attention,
    }
    return json.loads(json.dumps(content))  # enums as their values


def grader_code(kind: type[Task]) -> str:
    """12 letters of the SHA-256 of all source that grades a task, whatever its line ends."""
    root = Path(__file__).parents[1]
    files = [path for name in GRADERS for path in sorted((root / name).rglob("*.py"))]
    files.append(Path(inspect.getfile(kind)))  # the task may be a file of the user's
    texts = (path.read_text(encoding="utf-8") for path in files)  # reads every line end as \n
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def protocol_name(content: dict[str, Any]) -> str:
    """`countdown-test-16x16-1f2e3d4c`: task, split, canvas, steps, and all the rest."""
    decoding = content["decoding"]
    size = f"{decoding['gen_length']}x{decoding['steps']}"
    return f"{content['task']}-{content['split']}-{size}-{digest(content)}"


def checkpoint_folder(name: str, path: Path) -> str:
    """A folder's name for a checkpoint; it changes with the checkpoint's files."""
    files = sorted(file for file in path.iterdir() if file.is_file())
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    readable = re.sub(r"[^\w.-]+", "-", name).strip("-.")[-60:]
    return f"{readable}-{digest([name, stamps])}"


@dataclass(slots=True, kw_only=True)
class CellState:
    """cell.json: what of completions.jsonl is whole, and at the end what came out.

    CellState(checkpoint="data/tiny-countdown", path="...", position=0, total=100, done=64,
             size=18201, decode_s=1.9)
    """

    checkpoint: str  # as the user wrote it
    path: str
    position: int  # among the protocol's checkpoints; the others are compared with the first
    total: int = -1  # problems; -1 before they are encoded
    dropped: int = 0  # problems that are too long for the model's positions
    done: int = 0  # problems that are completed and saved
    size: int = 0  # bytes of completions.jsonl that belong to them
    decode_s: float = 0.0
    stop_tokens: list[str] | None = None
    first_prompt: str | None = None  # as the model saw it
    summary: dict[str, Any] | None = None
    finished: bool = False  # and tracked


class Cell:
    """The files of a cell; the first rank alone writes."""

    def __init__(self, folder: Path, new: CellState | None = None):
        """The cell that is in `folder`; `new` where there is none.

        Raises:
            CheckpointError: there is none, and nothing new; or cell.json is of another version.
        """
        self.folder = folder
        self.completions = folder / "completions.jsonl"
        if new is not None and not (folder / CELL).exists():
            self.progress = new
            return
        try:
            self.progress = CellState(**read_json(folder / CELL, CheckpointError))
        except TypeError as error:
            raise CheckpointError(f"{folder / CELL} is of another version: {error}") from None

    @contextmanager
    def sole_user(self) -> Iterator[None]:
        """Refuse a cell that another process is at; drop what it left of a chunk."""
        taken = (
            f"{self.folder} is being evaluated by another process; wait for it or use another "
            "`results` folder"
        )
        with sole_user(self.folder, taken):
            self.completions.touch()
            if self.completions.stat().st_size < self.progress.size:
                log.warning("%s is not whole; it is made again", self.completions)
                self.progress.done = self.progress.size = 0
                self.progress.decode_s, self.progress.finished = 0.0, False
            os.truncate(self.completions, self.progress.size)
            yield

    def save(self) -> None:
        write_json(self.folder / CELL, asdict(self.progress))

    def add(self, rows: list[Completion], problems: int, decode_s: float) -> None:
        """Add a chunk: first its lines, then the word that they are whole.

        Raises:
            DataError: it cannot be written; the chunks before it are whole.
        """
        try:
            with self.completions.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
            flush(self.completions)
            self.progress.done += problems
            self.progress.decode_s += decode_s
            self.progress.size = self.completions.stat().st_size
            self.save()
        except OSError as error:
            raise DataError(
                f"{self.completions}: {error.strerror}; what was completed before is kept, the "
                "same command goes on behind it"
            ) from None

    def read(self) -> list[Completion]:
        """Every whole completion."""
        lines = self.completions.read_bytes()[: self.progress.size].decode().splitlines()
        return [Completion(**json.loads(line)) for line in lines]

    def write_trace(self, rows: list[TraceRow]) -> None:
        path = self.folder / "trace.json"
        with survives_a_full_disk(path):
            write_json(path, [asdict(row) for row in rows])

    def read_trace(self) -> list[TraceRow]:
        """The rows of the trace page; none where they were not written."""
        path = self.folder / "trace.json"
        if not path.exists():
            return []
        rows: list[TraceRow] = []
        for row in json.loads(path.read_text(encoding="utf-8")):
            row["views"] = row["views"] and [View(**view) for view in row["views"]]
            rows.append(TraceRow(**row))
        return rows


def position_in(folder: Path, checkpoint: str) -> int:
    """Behind the checkpoints that a protocol has; one that was changed keeps its place."""
    there = [Cell(path.parent).progress for path in folder.glob(f"*/{CELL}")]
    own = [cell.position for cell in there if cell.checkpoint == checkpoint]
    return min(own, default=max((cell.position for cell in there), default=-1) + 1)


def run_cell(
    engine: Engine,
    cell: Cell,
    policy: Policy,
    task: Task,
    problems: Problems,
    config: EvalRunConfig,
) -> None:
    """Complete what is not done yet, chunk by chunk; every rank calls, the first one saves."""
    settings, progress = config.eval, cell.progress
    key, total = rng.stream(config.seed, "eval"), len(problems.ids)
    started, before = time.perf_counter(), engine.agree(progress.done)
    for first in range(before, total, settings.chunk_size):
        part = problems.part(first, first + settings.chunk_size)
        found = complete(
            engine,
            policy,
            task,
            part,
            config.rollout,
            key=key,
            samples=settings.samples,
            first_row=first * settings.samples,
        )
        if not engine.is_main:
            continue
        if first == 0 and settings.trace_problems:
            shown = settings.trace_problems * settings.samples
            with engine.autocast():
                cell.write_trace(shown_rows(policy, found.rollout, shown, progress.checkpoint))
        cell.add(found.rows, len(part.ids), found.decode_s)
        passed = time.perf_counter() - started
        left = passed / (progress.done - before) * (total - progress.done)
        log.info(
            "%s: %d of %d problems, %.0f s left", progress.checkpoint, progress.done, total, left
        )


def shown_rows(policy: Policy, rollout: Rollout, count: int, source: str) -> list[TraceRow]:
    """The first rows of this rank as the trace page shows them."""
    row_N = torch.arange(min(count, len(rollout.texts)), device=rollout.rows_B.device)
    if not len(row_N):
        return []
    few = pick_rows(rollout, row_N)
    return trace_rows(policy, few, source=source, num_alternatives=NUM_ALTERNATIVES)
