"""Completions of a set of problems, graded: along a run, and for `python -m drift.eval`."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from drift.cluster.engine import Engine
from drift.common import rng, terminal
from drift.common.stats import Accuracy
from drift.common.types import Example, PromptBatch, Rollout
from drift.config.commands import EvalRunConfig, RunConfig, SFTConfig
from drift.config.network_checks import validate_network
from drift.config.rollout import RolloutConfig
from drift.config.task import Split
from drift.policy.base import Policy
from drift.rollout.collect import completions
from drift.rollout.prompts import encode_all
from drift.tasks import Task

log = logging.getLogger("drift")


class UnfinishedError(Exception):
    """An evaluation that was left, on all ranks alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problems:
    """Encoded problems of one split: Problems(split=Split.test, examples=[...], ids=[[5, 9]])."""

    split: Split
    examples: list[Example]
    ids: list[list[int]]

    def part(self, first: int, last: int) -> "Problems":
        """The problems first..last-1."""
        examples, ids = self.examples[first:last], self.ids[first:last]
        return Problems(split=self.split, examples=examples, ids=ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    r"""One graded completion, as it is saved.

    Completion(key="countdown:3,5,9:7", prompt="3 9 5=7", sample=0, completion="\\boxed{3+9-5}",
               answer="3+9-5", correct=True, verdict="pass", nfe=6, length=14, tokens=16,
               finished=True)
    """

    key: str  # of the problem
    prompt: str
    sample: int  # 0 .. samples - 1 of the problem
    completion: str
    answer: str | None
    correct: bool
    verdict: str
    nfe: int  # network evaluations
    length: int  # tokens up to and with the first stop token
    tokens: int  # committed, also behind the stop token
    finished: bool  # a stop token was committed


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """What `complete` made: Completions(rows=[...], rollout=Rollout(...), decode_s=1.2)."""

    rows: list[Completion]  # of all ranks, the samples of a problem adjacent
    rollout: Rollout  # this rank's rows, group size 1
    decode_s: float  # of the slowest rank


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One evaluation: accuracy, cost, and every completion with its grade."""

    split: Split
    accuracy: Accuracy
    nfe_mean: float
    truncated_frac: float
    seconds: float
    completions: list[Completion]

    def record(self, step: int) -> dict[str, object]:
        """As JSON, of the policy after so many training steps."""
        return {
            **self.accuracy.as_dict(),
            "split": self.split,
            "step": step,
            "nfe_mean": self.nfe_mean,
            "truncated_frac": self.truncated_frac,
            "seconds": self.seconds,
            "completions": [asdict(row) for row in self.completions],
        }


def complete(
    engine: Engine,
    policy: Policy,
    task: Task,
    problems: Problems,
    rollout: RolloutConfig,
    *,
    key: int,
    samples: int = 1,
    first_row: int = 0,
    leave: Callable[[], bool] | None = None,
) -> Completions:
    """Complete every problem `samples` times and grade; each rank does its share of the rows.

    Args:
        engine, policy, task: what completes and grades.
        problems: at least one.
        rollout: decoding settings; temperature 0 is greedy.
        key: of the random numbers, the same on every rank.
        samples: completions of a problem.
        first_row: number of the first row in the random numbers: a part of a set of problems gets
            the completions that it has in the whole.
        leave: asked after each denoising step of this rank.

    Raises:
        UnfinishedError: some rank was to leave.
    """
    total = len(problems.ids) * samples
    first, last = (total * r // engine.num_ranks for r in (engine.rank, engine.rank + 1))
    prompts = PromptBatch(
        examples=[problems.examples[row // samples] for row in range(first, last)],
        ids=[problems.ids[row // samples] for row in range(first, last)],
        first_prompt=first_row + first,
    )
    started = time.perf_counter()
    with engine.autocast(), terminal.bar(f"{problems.split} rows", len(prompts.ids)) as bar:
        own = completions_unless(leave, bar, policy, prompts, rollout, key)
    if own is None:
        policy.settle()  # until the other ranks have left, or are done
    if engine.max(own is None) or own is None:
        raise UnfinishedError
    engine.synchronize()
    decode_s = engine.max(time.perf_counter() - started)
    started = time.perf_counter()
    scores = task.checked_scores(prompts.examples, own.texts)
    own = replace(own, scores=scores, reward_s=time.perf_counter() - started)
    return Completions(
        rows=engine.gather(completions_of(own, samples)), rollout=own, decode_s=decode_s
    )


def completions_unless(
    leave: Callable[[], bool] | None, bar: terminal.Bar, *arguments: Any
) -> Rollout | None:
    """`completions(*arguments)` of each prompt once, with a bar; None if it was left."""

    def count(done: float) -> None:
        bar.move(done)
        if leave and leave():
            raise UnfinishedError

    with suppress(UnfinishedError):
        return completions(*arguments, group_size=1, count=count)
    return None


def completions_of(rollout: Rollout, samples: int) -> list[Completion]:
    """The rows of a rollout of group size 1 as they are saved."""
    trace = rollout.trace
    columns = zip(
        rollout.rows_B.tolist(),
        rollout.prompts.examples,
        rollout.texts,
        rollout.scores,
        trace.nfe_B.tolist(),
        trace.length_B.tolist(),
        trace.committed_BC.sum(1).tolist(),
        trace.finished_B.tolist(),
        strict=True,
    )
    return [
        Completion(
            key=example.key,
            prompt=example.prompt,
            sample=row % samples,
            completion=text,
            answer=score.answer,
            correct=score.correct,
            verdict=score.verdict,
            nfe=nfe,
            length=length,
            tokens=tokens,
            finished=finished,
        )
        for row, example, text, score, nfe, length, tokens, finished in columns
    ]


def evaluate(
    engine: Engine,
    policy: Policy,
    task: Task,
    problems: Problems,
    rollout: RolloutConfig,
    leave: Callable[[], bool] | None = None,
) -> EvalResult:
    """Complete every problem once with the given decoding settings; temperature 0 is greedy.

    Each rank completes its share; all return the whole result, or leave (see `complete`).
    """
    started, key = time.perf_counter(), rng.stream(0, "eval")
    rows = complete(engine, policy, task, problems, rollout, key=key, leave=leave).rows
    return EvalResult(
        split=problems.split,
        accuracy=Accuracy(correct=sum(row.correct for row in rows), n=len(rows)),
        nfe_mean=sum(row.nfe for row in rows) / len(rows),
        truncated_frac=sum(not row.finished for row in rows) / len(rows),
        seconds=time.perf_counter() - started,
        completions=rows,
    )


def load_problems(
    policy: Policy,
    examples: list[Example],
    split: Split,
    config: RunConfig | SFTConfig | EvalRunConfig,
) -> Problems:
    """Encode the problems of a split that fit; of those to evaluate on, `eval.max_examples`.

    Raises:
        ConfigError: the settings do not go with the network.
        RolloutError: as `encode_all`.
    """
    validate_network(config, policy.backbone.config.block_length)
    limit = None if split == Split.train else config.eval.max_examples
    examples = examples[:limit]
    kept, ids, dropped = encode_all(policy, config.task, examples, config.rollout.gen_length)
    if dropped:
        log.warning(
            "%d of %d %s prompts are longer than the model's positions and were dropped",
            dropped,
            len(examples),
            split,
        )
    return Problems(split=split, examples=kept, ids=ids)
