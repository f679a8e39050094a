"""Which prompts a step completes, and which of their groups it learns from.

Prompts come in the random order of an epoch, or in proportion to how informative they are by their
pass rates so far. With dynamic sampling (DAPO, arXiv 2503.14476) a step goes on to draw until
enough groups have rewards that differ. Everything here is the same on every rank, and for any
number of ranks: pass rates are gathered, random numbers are counter-based.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.errors import CheckpointError
from drift.common.types import PromptBatch, Rollout
from drift.config.commands import RunConfig
from drift.config.curriculum import CURRICULA, CurriculumConfig, InformativeConfig
from drift.learner.advantage import SAME_REWARD, spread
from drift.rollout.evaluate import Problems

PRIOR = 0.5  # right and wrong completions that every prompt begins with: Jeffreys' prior of a share
log = logging.getLogger("drift")


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, size: int) -> list[int]:
    """The order of the training problems in one epoch."""
    return rng.permutation(rng.stream(seed, "order", epoch), size)


class PassRates:
    """What is known of each training prompt's pass rate p, and how informative that makes it.

    p has a Beta distribution by the right and wrong completions so far (as in MoPPS, arXiv
    2507.04632), of which older ones fade, since the policy changes. A prompt's weight is the
    expected p (1 - p), the variance of a pass ("learnability", arXiv 2502.12272), plus a floor:
    what was always or never solved is drawn more seldom, not never.
    """

    def __init__(self, num_prompts: int, config: InformativeConfig):
        self.config = config
        self.correct_N = torch.zeros(num_prompts, dtype=torch.float64)
        self.tried_N = torch.zeros(num_prompts, dtype=torch.float64)

    def record(self, prompts: list[int], correct: list[int], group_size: int) -> None:
        """Count a step's groups.

        Args:
            prompts: of each group, its number among the training prompts.
            correct: right completions of each group.
            group_size: completions of each group.
        """
        index_P = torch.tensor(prompts)
        again = index_P.unique()
        for counts_N, new in (
            (self.correct_N, correct),
            (self.tried_N, [group_size] * len(prompts)),
        ):
            counts_N[again] *= self.config.decay
            counts_N.index_add_(0, index_P, torch.tensor(new, dtype=torch.float64))

    def rate_N(self) -> Tensor:
        """The expected pass rate of each prompt: [N] float64, 0.5 where nothing is known."""
        return (self.correct_N + PRIOR) / (self.tried_N + 2 * PRIOR)

    def weight_N(self) -> Tensor:
        """What the chance to be drawn is in proportion to: [N] float64.

        Of p ~ Beta(a, b) with a + b = n, the expected p (1 - p) is a b / (n (n + 1)).
        """
        right_N, sum_N = self.correct_N + PRIOR, self.tried_N + 2 * PRIOR
        return right_N * (sum_N - right_N) / (sum_N * (sum_N + 1)) + self.config.floor

    def draw(self, key: int, count: int) -> list[int]:
        """Prompts in the order they are drawn, each in proportion to its weight among those left.

        The smallest of -log(u_i) / w_i come first, which draws without replacement (Efraimidis and
        Spirakis, 2006). When all prompts are drawn, the order begins again.

        Args:
            key: of the random numbers, from `rng.stream`.
            count: prompts wanted.
        """
        size = len(self.correct_N)
        race_N = -rng.uniform(key, torch.arange(size)).log() / self.weight_N()
        order = race_N.topk(min(count, size), largest=False).indices.tolist()
        return [order[place % size] for place in range(count)]

    def metrics(self) -> dict[str, float]:
        """Of the prompts that have a pass rate: their share and mean; and how even the draw is."""
        seen_N, chance_N = self.tried_N > 0, self.weight_N() / self.weight_N().sum()
        entropy = float(-(chance_N * chance_N.log()).sum())
        return {
            "curriculum/seen_frac": float(seen_N.double().mean()),
            "curriculum/pass_rate": float(self.rate_N()[seen_N].mean()),
            "curriculum/effective_frac": float(torch.tensor(entropy).exp()) / len(chance_N),
        }


def varied_groups(rollout: Rollout) -> Tensor:
    """Which groups have rewards that differ: [P] bool."""
    rewards_B = torch.tensor([score.reward for score in rollout.scores])
    return spread(rewards_B, rollout.group_size) > SAME_REWARD


def first_rows(rollout: Rollout) -> list[int]:
    """The number, among the rows of the step over all ranks, of each group's first row."""
    return rollout.rows_B[:: rollout.group_size].tolist()


def pick_groups(rollout: Rollout, groups: list[int]) -> Rollout:
    """Some of the groups, by their places."""
    size = rollout.group_size
    rows = [group * size + place for group in groups for place in range(size)]
    prompts = replace(
        rollout.prompts,
        examples=[rollout.prompts.examples[group] for group in groups],
        ids=[rollout.prompts.ids[group] for group in groups],
    )
    return rollout.pick(rows, prompts, size)


def joined(rollouts: list[Rollout], device: torch.device | str) -> Rollout:
    """Rollouts of one policy behind one another, as one, on a device."""
    traces = [part.trace.tensors() for part in rollouts]
    trace = {name: torch.cat([part[name].to(device) for part in traces]) for name in traces[0]}
    return replace(
        rollouts[0],
        prompts=PromptBatch(
            examples=[example for part in rollouts for example in part.prompts.examples],
            ids=[ids for part in rollouts for ids in part.prompts.ids],
            first_prompt=rollouts[0].prompts.first_prompt,
        ),
        rows_B=torch.cat([part.rows_B.to(device) for part in rollouts]),
        trace=replace(rollouts[0].trace, **trace),
        texts=[text for part in rollouts for text in part.texts],
        scores=[score for part in rollouts for score in part.scores],
        reward_s=sum(part.reward_s for part in rollouts),
    )


class Curriculum:
    """The prompts of every step, and the groups of them that are learned from."""

    def __init__(self, config: RunConfig, engine: Engine, train: Problems):
        self.config, self.engine, self.train = config, engine, train
        settings = config.curriculum
        self.rates: PassRates | None = None
        if isinstance(settings, InformativeConfig):
            self.rates = PassRates(len(train.ids), settings)
        self.extra_prompts = 0  # drawn so far, beyond one round for each step

    def numbers(self, step: int, number: int) -> list[int]:
        """The training prompts of a round of a step, over all ranks; rounds count from 0."""
        order = CURRICULA.function(self.config.curriculum)
        numbers: list[int] = order(self, step, number)
        return numbers

    @property
    def count(self) -> int:
        """Groups of a round and of an update, over all ranks."""
        return self.config.rollout.prompts_per_step

    def sample(self, step: int, complete: Callable[[PromptBatch], Rollout]) -> Rollout:
        """Complete prompts, round by round, until enough groups vary or the rounds are used up.

        Args:
            step: steps done.
            complete: completes and grades this rank's prompts of a round.

        Returns:
            All that this rank drew.
        """
        last = self.config.curriculum.max_rounds - 1
        rounds: list[Rollout] = []
        numbers: list[int] = []
        varied = 0.0
        for number in range(last + 1):
            chosen = self.numbers(step, number)
            numbers += chosen
            rounds.append(complete(self.batch(chosen, number)))
            if number < last:
                local = {"varied": float(varied_groups(rounds[-1]).sum())}
                varied += self.engine.sum(local)["varied"]
            if varied >= self.count:
                break
        drawn = rounds[0] if len(rounds) == 1 else joined(rounds, self.engine.device)
        self.extra_prompts += len(numbers) - self.count
        if self.rates is not None:
            self.rates.record(numbers, self.correct(drawn), drawn.group_size)
        return drawn

    def batch(self, chosen: list[int], number: int) -> PromptBatch:
        """This rank's share of the prompts of a round."""
        mine = self.engine.share(self.count, "rollout.prompts_per_step")
        return PromptBatch(
            examples=[self.train.examples[i] for i in chosen[mine]],
            ids=[self.train.ids[i] for i in chosen[mine]],
            first_prompt=number * self.count + mine.start,
        )

    def correct(self, drawn: Rollout) -> list[int]:
        """Right completions of each group over all ranks, in the order of drawing."""
        size, right = drawn.group_size, [score.correct for score in drawn.scores]
        sums = [sum(right[first : first + size]) for first in range(0, len(right), size)]
        everyone = self.engine.gather(list(zip(first_rows(drawn), sums, strict=True)))
        return [count for _, count in sorted(everyone)]

    def select(self, drawn: Rollout) -> Rollout:
        """This rank's share of the groups that are learned from: `prompts_per_step` over all ranks.

        The first that vary, in the order of drawing; where they are too few, the first of the
        others fill up, which an update leaves out. Groups move between ranks, so that all have
        equally many and the batch is that of a single rank.
        """
        mine = self.engine.share(self.count, "rollout.prompts_per_step")
        if len(drawn.prompts.ids) == mine.stop - mine.start:
            return drawn
        rows, varied = first_rows(drawn), varied_groups(drawn).tolist()
        ranked = sorted(
            self.engine.gather([(not v, row) for v, row in zip(varied, rows, strict=True)])
        )
        kept = {row for _, row in ranked[: self.count]}
        part = pick_groups(drawn, [place for place, row in enumerate(rows) if row in kept])
        everyone = joined(self.engine.gather([joined([part], "cpu")]), self.engine.device)
        order = torch.tensor(first_rows(everyone)).argsort().tolist()
        return pick_groups(everyone, order[mine])

    def metrics(self, drawn: Rollout, kept: Rollout) -> dict[str, float]:
        """What is logged of the choice of prompts; nothing where an epoch's order is all."""
        metrics: dict[str, float] = {}
        if self.config.curriculum.max_rounds > 1:
            total = self.engine.sum(
                {
                    "drawn": float(len(drawn.prompts.ids)),
                    "rows": float(len(kept.scores)),
                    "reward": sum(score.reward for score in kept.scores),
                    "varied": float(varied_groups(drawn).sum()),
                    "used": float(varied_groups(kept).sum()),
                }
            )
            metrics = {
                "rollout/rounds": total["drawn"] / self.count,
                "rollout/drawn_prompts": total["drawn"],
                "reward/kept_mean": total["reward"] / total["rows"],
                "curriculum/varied_groups": total["used"],
                "curriculum/surplus_groups": total["varied"] - total["used"],
            }
        return metrics | (self.rates.metrics() if self.rates is not None else {})

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the step; empty where an epoch's order is all."""
        state: dict[str, Tensor] = {}
        if self.extra_prompts:
            state["extra_prompts"] = torch.tensor(self.extra_prompts)
        if self.rates is not None:
            state |= {"correct": self.rates.correct_N, "tried": self.rates.tried_N}
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`.

        Raises:
            CheckpointError: the pass rates are of another number of training prompts.
        """
        if "extra_prompts" in state:
            self.extra_prompts = int(state["extra_prompts"])
        if self.rates is None:
            return
        if "correct" not in state:
            log.warning("the checkpoint has no pass rates: all prompts begin with the same")
            return
        if state["correct"].shape != self.rates.correct_N.shape:
            raise CheckpointError(
                f"the checkpoint has pass rates of {len(state['correct'])} training prompts, the "
                f"task has {len(self.rates.correct_N)}; use the same data, or curriculum=epoch"
            )
        self.rates.correct_N, self.rates.tried_N = state["correct"], state["tried"]


@CURRICULA.implements(CurriculumConfig)
def in_epochs(curriculum: Curriculum, step: int, number: int) -> list[int]:
    """`Curriculum.numbers`: each prompt once in each epoch, in a random order."""
    count, size = curriculum.count, len(curriculum.train.ids)
    first = curriculum.extra_prompts + (step + number) * count
    places = (divmod(position, size) for position in range(first, first + count))
    return [epoch_order(curriculum.config.seed, epoch, size)[place] for epoch, place in places]


@CURRICULA.implements(InformativeConfig)
def by_pass_rates(curriculum: Curriculum, step: int, number: int) -> list[int]:
    """`Curriculum.numbers`: prompts by what is known of their pass rates."""
    assert curriculum.rates is not None
    key = rng.stream(curriculum.config.seed, "informative", step)
    return curriculum.rates.draw(key, (number + 1) * curriculum.count)[number * curriculum.count :]
