"""Greedy accuracy of a policy on a set of problems."""

import logging
import time
from dataclasses import dataclass

import torch

from drift import rng
from drift.config import BaseConfig, RolloutConfig, Split
from drift.decoding import decode
from drift.engine import Engine
from drift.policy.base import Policy
from drift.prompts import encode_all
from drift.rollout import texts_of
from drift.stats import Accuracy
from drift.tasks import Task
from drift.types import Example, Score

log = logging.getLogger("drift")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problems:
    """Encoded problems of one split: Problems(split=Split.test, examples=[...], ids=[[5, 9]])."""

    split: Split
    examples: list[Example]
    ids: list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One evaluation: accuracy, cost, and every completion with its grade."""

    split: Split
    accuracy: Accuracy
    nfe_mean: float
    truncated_frac: float
    seconds: float
    examples: list[Example]
    texts: list[str]
    scores: list[Score]


def evaluate(
    engine: Engine, policy: Policy, task: Task, problems: Problems, rollout: RolloutConfig
) -> EvalResult:
    """Complete every problem once with the given decoding settings; temperature 0 is greedy.

    Each rank completes its share; all return the whole result.
    """
    started = time.perf_counter()
    total = len(problems.ids)
    first, last = (total * r // engine.num_ranks for r in (engine.rank, engine.rank + 1))
    rows = torch.arange(first, last)
    with engine.autocast():
        trace = decode(policy, problems.ids[first:last], rows, rollout, rng.stream(0, "eval"))
    texts = texts_of(policy, trace)
    local = zip(
        texts,
        task.score_all(problems.examples[first:last], texts),
        trace.nfe_B.tolist(),
        trace.finished_B.tolist(),
        strict=True,
    )
    texts, scores, nfe, finished = (
        list(column) for column in zip(*engine.gather(list(local)), strict=True)
    )
    return EvalResult(
        split=problems.split,
        accuracy=Accuracy(correct=sum(s.correct for s in scores), n=total),
        nfe_mean=sum(nfe) / total,
        truncated_frac=1 - sum(finished) / total,
        seconds=time.perf_counter() - started,
        examples=problems.examples,
        texts=texts,
        scores=scores,
    )


def load_problems(
    policy: Policy, examples: list[Example], split: Split, config: BaseConfig
) -> Problems:
    """Encode the problems of a split that fit; of those to evaluate on, `eval.max_examples`."""
    limit = None if split == Split.train else config.eval.max_examples
    examples = examples[:limit]
    kept, ids, dropped = encode_all(policy, config.task, examples, config.rollout.gen_length)
    if dropped:
        log.warning(
            "%d of %d %s prompts are longer than the model's positions and were dropped",
            dropped, len(examples), split,
        )  # fmt: skip
    return Problems(split=split, examples=kept, ids=ids)
