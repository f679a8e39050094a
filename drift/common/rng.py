"""Counter-based randomness: a number is a function of (seed, purpose, counters), nothing else.

There is no generator state to save, to restore or to keep in step across ranks. Row 17 of step 40
draws the same numbers whatever the batch size, the number of ranks or its neighbours.
The mixer is splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
"""

import hashlib

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def stream(seed: int, purpose: str, *counters: int) -> int:
    """A 64-bit key for one purpose of one run, for example `stream(seed, "rollout", step)`."""
    text = ":".join(map(str, (seed, purpose, *counters)))
    return _signed(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def streams(
    seed: int, purpose: str, count: int, device: torch.device | str | None = None
) -> Tensor:
    """The keys `stream(seed, purpose, 0)` to `stream(seed, purpose, count - 1)`: [count] int64."""
    keys = [stream(seed, purpose, i) for i in range(count)]
    return torch.tensor(keys, dtype=torch.int64, device=device)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniform(key: int | Tensor, *counters: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), one for each element of the broadcast counters.

    Args:
        key: from `stream`; or int64 keys that broadcast with the counters.
        counters: int64 tensors that broadcast together, for example rows [B, 1], positions [C].

    Returns:
        float64 tensor of the broadcast shape; depends on nothing but key and counters.
    """
    device = counters[0].device
    state = torch.as_tensor(key, dtype=torch.int64, device=device)
    for counter in counters:
        state = _mix(state + _GOLDEN + counter.long() * _MIX_2)
    return (_shift_right(_mix(state + _GOLDEN), 11).double() + 0.5) * 2.0**-53


def permutation(key: int, size: int) -> list[int]:
    """A random order of 0..size-1, for example the order of the training examples of one epoch."""
    return uniform(key, torch.arange(size)).argsort().tolist()
