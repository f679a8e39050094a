"""Intervals for the numbers that are reported."""

from dataclasses import dataclass
from math import sqrt

Z95 = 1.959963984540054


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


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, JASA 1927).

    Args:
        correct: successes, 0..n.
        n: trials; 0 gives (0, 1).
        z: normal quantile, 1.96 for 95 %.
    """
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    center = share + z * z / (2 * n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)
