"""Intervals for the numbers that are reported."""

from dataclasses import dataclass
from math import comb, sqrt
from statistics import mean, stdev

Z95 = 1.959963984540054
DRAWS_AT_ONCE = 1_000_000  # numbers of a bootstrap held in memory together


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """A share of right answers with its Wilson interval: Accuracy(correct=3, n=4)."""

    correct: int
    n: int

    @property
    def value(self) -> float:
        return self.correct / self.n if self.n else 0.0

    @property
    def ci95(self) -> tuple[float, float]:
        return wilson(self.correct, self.n)

    def as_dict(self) -> dict[str, object]:
        return {"accuracy": self.value, "n": self.n, "ci95": list(self.ci95)}

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}] of {self.n}"


def wilson(correct: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, JASA 1927).

    Args:
        correct: successes, 0..n; a mean over several rounds need not be whole.
        n: trials; 0 gives (0, 1).
        z: normal quantile, 1.96 for 95 %.

    Returns:
        The two ends, with `correct / n` between them also where rounding would leave it outside.
    """
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    center = share + z * z / (2 * n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = (center - half) / scale, (center + half) / scale
    return max(0.0, min(share, low)), min(1.0, max(share, high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over runs: Estimate(value=0.8, ci95=(0.77, 0.83), n=1)."""

    value: float
    n: int  # runs
    ci95: tuple[float, float] | None = None  # None where nothing tells

    def __str__(self) -> str:
        if self.ci95 is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.ci95[0]:.3f}, {self.ci95[1]:.3f}]"


def t_interval(values: list[float]) -> tuple[float, float]:
    """Student's interval of a mean (Student, Biometrika 1908): mean -+ t s / sqrt(n).

    Args:
        values: two or more independent ones, for example the accuracies of runs of several seeds.

    Raises:
        ValueError: fewer than two values.
    """
    from scipy.stats import t

    if len(values) < 2:
        raise ValueError(f"an interval over runs needs two or more, got {len(values)}")
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return mean(values) - half, mean(values) + half


def mean_height(xs: list[float], ys: list[float], end: float) -> float:
    """Mean of a piecewise linear curve over [xs[0], end]: the area under it over its width.

    Of an accuracy over seconds it says how fast a run learns: 0.5 for a straight rise from 0 to 1.

    Args:
        xs: rising.
        ys: one for each x.
        end: within the curve, xs[0] < end <= xs[-1].

    Raises:
        ValueError: the end is not within the curve.
    """
    if not xs or not xs[0] < end <= xs[-1]:
        raise ValueError(f"end={end} is not within the curve over {xs[:1]}..{xs[-1:]}")
    area = 0.0
    for x0, x1, y0, y1 in zip(xs, xs[1:], ys, ys[1:], strict=False):
        if x0 >= end:
            break
        if x1 > end:
            x1, y1 = end, y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / (end - xs[0])


def pareto_front(points: list[tuple[float, float]]) -> list[bool]:
    """Which (cost, value) points no other point beats: Pareto's front (Pareto, 1906).

    A point is beaten by one that costs no more and is worth no less, and is better in one of the
    two. Equal points do not beat each other.

    Args:
        points: lower cost is better, higher value is better; none is NaN.
    """
    return [
        not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
        for cost, value in points
    ]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one or more of k completions, drawn from n without putting back, are right.

    1 - C(n - correct, k) / C(n, k): unbiased for the chance that k independent completions hold a
    right one (Chen et al., arXiv 2107.03374, eq. 1).

    Args:
        n: completions of the problem.
        correct: of them, the right ones, 0..n.
        k: 1..n.

    Raises:
        ValueError: k is not within 1..n, or correct not within 0..n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@{k} of {correct} right completions among {n} is not defined")
    return 1.0 - comb(n - correct, k) / comb(n, k)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test (Psychometrika 1947).

    If two checkpoints are equally good, a problem that only one of them solves is as likely the
    first's as the second's: the counts are then those of a fair coin.

    Args:
        only_first: problems that the first solves and the second does not.
        only_second: the other way round.
    """
    tosses = only_first + only_second
    tail = sum(comb(tosses, heads) for heads in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**tosses)


def bootstrap(values: list[float], *, resamples: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean: percentiles over resampled problems (Efron 1979).

    For differences of two checkpoints give the differences problem by problem: then what makes a
    problem hard for both does not count.

    Args:
        values: one for each problem, at least one.
        resamples: how often as many problems are drawn with replacement.
        seed: of the draws; the same values give the same interval.

    Raises:
        ValueError: no values.
    """
    import torch

    from drift.common import rng

    if not values:
        raise ValueError("an interval needs at least one value")
    values_N = torch.tensor(values, dtype=torch.float64)
    size, columns_N = len(values), torch.arange(len(values))
    key = rng.stream(seed, "bootstrap", size)
    rows = max(1, DRAWS_AT_ONCE // size)
    means = [
        values_N[(rng.uniform(key, draw_R[:, None], columns_N) * size).long()].mean(1)
        for draw_R in torch.arange(resamples).split(rows)
    ]
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)
