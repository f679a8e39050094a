"""Greedy accuracy of a policy on a set of problems."""

import logging
import time
from dataclasses import dataclass, replace

import torch

from drift import rng
from drift.config import BaseConfig, RolloutConfig
from drift.decoding import decode
from drift.engine import Engine
from drift.policy.base import Policy
from drift.prompts import encode_all
from drift.rollout import texts_of
from drift.stats import Accuracy
from drift.tasks import Split, Task
from drift.types import Example, Score

log = logging.getLogger("drift")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problems:
    """The encoded problems of one split: Problems(split="test", examples=[...], ids=[[5, 9]])."""

    split: str
    examples: list[Example]
    ids: list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One evaluation: accuracy, cost, and every completion with its grade."""

    split: str
    accuracy: Accuracy
    nfe_mean: float
    truncated_frac: float
    seconds: float
    texts: list[str]
    scores: list[Score]


def evaluate(
    engine: Engine, policy: Policy, task: Task, problems: Problems, rollout: RolloutConfig
) -> EvalResult:
    """Complete every problem once, greedily, with the rollout's decoding settings."""
    started = time.perf_counter()
    greedy = replace(rollout, temperature=0.0)
    rows = torch.arange(len(problems.ids))
    with engine.autocast():
        trace = decode(policy, problems.ids, rows, greedy, rng.stream(0, "eval"))
    texts = texts_of(policy, trace)
    scores = [task.score(e, t) for e, t in zip(problems.examples, texts, strict=True)]
    return EvalResult(
        split=problems.split,
        accuracy=Accuracy(correct=sum(s.correct for s in scores), n=len(scores)),
        nfe_mean=float(trace.nfe_B.double().mean()),
        truncated_frac=float((~trace.finished_B).double().mean()),
        seconds=time.perf_counter() - started,
        texts=texts,
        scores=scores,
    )


def load_problems(policy: Policy, task: Task, split: Split, config: BaseConfig) -> Problems:
    """The problems of a split that fit, at most `eval.max_examples` of them."""
    examples = task.examples(split)[: config.eval.max_examples]
    kept, ids, dropped = encode_all(policy, task.config, examples, config.rollout.gen_length)
    if dropped:
        log.warning(
            "%d of %d %s prompts are longer than the model's positions and were dropped",
            dropped, len(examples), split,
        )  # fmt: skip
    return Problems(split=split.value, examples=kept, ids=ids)
