"""From the grades of a task to the reward that the policy is trained on."""

from collections.abc import Sequence
from dataclasses import replace

from drift.common.types import Example, Score
from drift.config.task import Truncated
from drift.tasks import Task


def grade(
    task: Task,
    examples: list[Example],
    texts: list[str],
    *,
    length_shares: Sequence[float] | None = None,
    nfe_shares: Sequence[float] | None = None,
    finished: Sequence[bool] | None = None,
) -> list[Score]:
    """Grade completions once and combine their rewards by the weights of `task.reward`.

    reward = sum_name weight_name * reward_name - length_penalty * length_share
             - nfe_penalty * nfe_share * max(0, reward_answer),
    and 0 for a truncated completion if `task.reward.truncated=zero`.

    Network evaluations are charged by what the answer earned, so to wrong ones not at all (as
    length is in Arora and Zanette, arXiv 2502.04463): if wrong answers paid too, a group without a
    right one would teach to give up early.

    Args:
        task: grades; its scores may bring rewards of their own (sudoku: `cells`).
        examples: one for each text.
        texts: the completions.
        length_shares: length over the canvas, 0 to 1; None where nothing was sampled.
        nfe_shares: network evaluations over the most that the settings allow, 0 to 1; None where
            nothing was sampled.
        finished: False for a completion without a stop token; None where nothing was sampled.

    Returns:
        Scores in order. `rewards` has every reward by name, unweighted: `answer` (the task's own),
        `format` and the task's further ones. `correct` and `verdict` are the task's, whatever
        the weights.

    Raises:
        GradingError: a score of the task's is none.
    """
    config = task.config.reward
    scores: list[Score] = []
    for row, score in enumerate(task.checked_scores(examples, texts)):
        well_formed = float(task.is_well_formed(texts[row]))
        rewards = {"answer": score.reward, "format": well_formed, **score.rewards}
        total = config.answer * score.reward + config.format * well_formed
        if config.cells:
            total += config.cells * rewards["cells"]
        if length_shares is not None:
            total -= config.length_penalty * length_shares[row]
        if config.nfe_penalty and nfe_shares is not None:
            rewards["nfe_share"] = nfe_shares[row] * max(0.0, score.reward)
            total -= config.nfe_penalty * rewards["nfe_share"]
        if finished is not None and not finished[row] and config.truncated == Truncated.zero:
            total = 0.0
        scores.append(replace(score, reward=total, rewards=rewards))
    return scores
