"""Bounds of numbers, written at the setting: `top_k: int | None = positive(None)`.

Each function makes a dataclass field with a default and the bounds that `out_of_range` reads. Null
is allowed wherever the field's type allows it. Imports no torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from math import isfinite
from typing import Any, get_args, get_type_hints

BOUNDS = "bounds"  # the key in a field's metadata


@dataclass(frozen=True, slots=True)
class Bound:
    """Bound("0 or more", lambda value: value >= 0)"""

    words: str  # the end of `rollout.top_p=0.0 must be greater than 0`
    allows: Callable[[float], bool]
    whole: str = ""  # the end of `rollout.top_k=0 must be a whole number of at least 1`


FINITE = Bound("a finite number", isfinite)


def positive(default: object, *, finite: bool = False) -> Any:
    """Above 0; inf too, unless `finite`."""
    above_0 = Bound("greater than 0", lambda value: not value <= 0, "of at least 1")
    return bounded(default, above_0, finite=finite)


def not_negative(default: object, *, finite: bool = False) -> Any:
    """0 or more; inf too, unless `finite`."""
    from_0 = Bound("0 or more", lambda value: not value < 0, "of at least 0")
    return bounded(default, from_0, finite=finite)


def above(default: object, low: float) -> Any:
    """More than `low`."""
    return bounded(default, Bound(f"above {low:g}", lambda value: value > low))


def at_least(default: object, low: float, why: str = "") -> Any:
    """`low` or more; the message ends with the reason."""
    words, whole = because(f"{low:g} or more", why), because(f"of at least {low:g}", why)
    return bounded(default, Bound(words, lambda value: value >= low, whole))


def between(default: object, low: float, high: float, why: str = "") -> Any:
    """From `low` to `high`, both allowed; the message ends with the reason."""
    words = because(f"from {low} to {high}", why)
    return bounded(default, Bound(words, lambda value: low <= value <= high))


def share(default: object, *, zero: bool = True, one: bool = True, why: str = "") -> Any:
    """From 0 to 1; `zero` and `one` say whether these two are allowed."""
    if zero:
        words = "from 0 to 1" if one else "from 0 to below 1"
    else:
        words = "above 0 and at most 1" if one else "above 0 and below 1"

    def allows(value: float) -> bool:
        return (value >= 0 if zero else value > 0) and (value <= 1 if one else value < 1)

    return bounded(default, Bound(because(words, why), allows))


def any_number(default: object, *, finite: bool = False) -> Any:
    """Every number, for example a seed; inf and nan too, unless `finite`."""
    return bounded(default, finite=finite)


def bounded(default: object, *bounds: Bound, finite: bool = False) -> Any:
    """A dataclass field with these bounds."""
    return field(default=default, metadata={BOUNDS: (*bounds, FINITE) if finite else bounds})


def because(words: str, why: str) -> str:
    return f"{words}: {why}" if why else words


def bounds_of(of: Field[Any]) -> tuple[Bound, ...]:
    """The bounds of a dataclass's field."""
    return of.metadata.get(BOUNDS, ())


def number_of(schema: type, name: str) -> type | None:
    """int or float where a setting is such a number, null allowed or not; else None."""
    kind = get_type_hints(schema).get(name)
    found = [one for one in (get_args(kind) or (kind,)) if one is not type(None)]
    return found[0] if found in ([int], [float]) else None


def allowed(of: Field[Any], kind: type) -> str:
    """`a whole number of at least 1`, `a finite number greater than 0`: what a number may be."""
    bounds = bounds_of(of)
    word = "a whole number" if kind is int else "a number"
    if FINITE in bounds and kind is float:
        word = FINITE.words
    return " ".join([word, *(end_of(bound, kind) for bound in bounds if bound is not FINITE)])


def end_of(bound: Bound, kind: type) -> str:
    """What follows `a number` in a message: `greater than 0`, `of 0 or more`."""
    if kind is int:
        return bound.whole or bound.words
    return f"of {bound.words}" if bound.words[0].isdigit() else bound.words


def out_of_range(config: Any, prefix: str = "") -> Iterator[str]:
    """`rollout.top_p=0.0 must be above 0 and at most 1`: every number outside its bounds."""
    for of in fields(config):
        value = getattr(config, of.name)
        if is_dataclass(value):
            yield from out_of_range(value, f"{prefix}{of.name}.")
        elif isinstance(value, int | float):  # neither null nor a value that is not given
            for bound in bounds_of(of):
                if not bound.allows(value):
                    whole = number_of(config.__class__, of.name) is int
                    words = allowed(of, int) if whole else bound.words
                    yield f"{prefix}{of.name}={value} must be {words}"
