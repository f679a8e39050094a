"""The gate against leaks: no problem of an evaluation set may be trained on.

A training problem and a held-out one are taken for the same if
- their keys are equal (what a task itself calls the same problem: `Example.key`), or
- their texts are equal,
and where the training set is a file, so that people wrote its problems, also if
- their texts are equal but for case, blanks, quotes and punctuation behind a word, or
- they share 13 successive words (runs of letters, or numbers; case and punctuation do not count)
  that stand in at most 10 different training texts. A text of fewer words is compared as a whole
  only.

The last is the rule of GPT-3 (arXiv 2005.14165, appendix C). What stands in more training texts
is a way of speaking, not a leak. Problems that a task generates share their template's words and
may differ in a comma: there the rule would see leaks where none are.
A problem's text is what `Task.text` says: its prompt without the words of `task.prompt` around it.
"""

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from drift.common.errors import DataError
from drift.common.types import Example
from drift.config.task import FilesConfig, Split
from drift.tasks import Task

NUM_WORDS = 13
MAX_TEXTS = 10
NUM_SHOWN = 3  # cases in the refusal
SHOWN_CHARS = 60

WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")
QUOTES = re.compile("[\"'`´‘’‚“”„«»]")
STOPS = re.compile(r"(?<=[\w)\]}$%])[.,;:!?]+(?=\s|$)")
BLANKS = re.compile(r"(?<!\w) | (?!\w)")  # all but those between two words

Pair = tuple[int, int]  # indices of a training and of a held-out problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Problem(key="gsm8k:17", text="How many clips did Natalia sell?")"""

    key: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Match(train=17, held_out=3, why="same text"): indices of two problems taken for the same."""

    train: int
    held_out: int
    why: str  # "same problem", "same text" or the 13 words


def plain(text: str) -> str:
    """A text without what may change when it is copied: case, blanks, quotes, ends of clauses."""
    text = QUOTES.sub("", unicodedata.normalize("NFKC", text).casefold())
    return BLANKS.sub("", " ".join(STOPS.sub("", text).split()))


def word_runs(text: str) -> set[str]:
    """Every 13 successive words of a text."""
    words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return {" ".join(words[i : i + NUM_WORDS]) for i in range(len(words) - NUM_WORDS + 1)}


def matches(train: Sequence[Problem], held_out: Sequence[Problem], *, written: bool) -> list[Match]:
    """Every pair of a training and a held-out problem that are taken for the same.

    Args:
        train: the problems to learn from.
        held_out: the problems that must not be among them.
        written: whether people wrote the texts of train: see above.

    Returns:
        One match for each pair with its strongest reason, in the order of train.
    """
    found = _by_words(train, held_out) if written else {}
    found |= _as_a_whole(train, held_out, plain if written else str.strip)
    return [Match(train=t, held_out=h, why=found[t, h]) for t, h in sorted(found)]


def _as_a_whole(
    train: Sequence[Problem], held_out: Sequence[Problem], normal: Callable[[str], str]
) -> dict[Pair, str]:
    """Pairs of equal text, in normal form, or equal key."""
    keys, texts = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for index, problem in enumerate(held_out):
        keys[problem.key].append(index)
        texts[normal(problem.text)].append(index)
    texts.pop("", None)  # nothing that could be compared
    found: dict[Pair, str] = {}
    for index, problem in enumerate(train):
        for same in texts.get(normal(problem.text), ()):
            found[index, same] = "same text"
        for same in keys.get(problem.key, ()):
            found[index, same] = "same problem"
    return found


def _by_words(train: Sequence[Problem], held_out: Sequence[Problem]) -> dict[Pair, str]:
    """Pairs that share 13 words, with the words."""
    runs: dict[str, list[int]] = defaultdict(list)
    for index, problem in enumerate(held_out):
        for run in word_runs(problem.text):
            runs[run].append(index)
    shared: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, problem in enumerate(train):
        for run in word_runs(problem.text) & runs.keys():
            shared[run][plain(problem.text)].append(index)
    found: dict[Pair, str] = {}
    for run, places in sorted(shared.items()):
        if len(places) <= MAX_TEXTS:
            pairs = itertools.product(itertools.chain(*places.values()), runs[run])
            found |= dict.fromkeys(pairs, run)
    return found


def problems_of(task: Task, examples: Iterable[Example]) -> list[Problem]:
    return [Problem(key=example.key, text=task.text(example)) for example in examples]


def check_overlap(
    task: Task, examples: dict[Split, list[Example]], max_overlap: float
) -> dict[str, dict[str, object]]:
    """Refuse to train on problems of the validation or of the test split.

    Args:
        task: whose problems they are.
        examples: of every split, whole.
        max_overlap: the largest share of an evaluation split that may be in train, 0..1.

    Returns:
        For the manifest: {"test": {"n": 1319, "in_train": 0, "written": True}, ...}.

    Raises:
        DataError: the share is larger; the first cases are shown.
    """
    written = task.config.files.train is not None
    train = problems_of(task, examples[Split.train])
    figures: dict[str, dict[str, object]] = {}
    for split in (Split.validation, Split.test):
        held_out = problems_of(task, examples[split])
        pairs = matches(train, held_out, written=written)
        first = {pair.held_out: pair for pair in reversed(pairs)}
        figures[split.value] = {"n": len(held_out), "in_train": len(first), "written": written}
        if len(first) > max_overlap * len(held_out):
            share = len(first) / len(held_out)
            cases = [case(first[i], train, held_out) for i in sorted(first)[:NUM_SHOWN]]
            raise DataError(
                f"{len(first)} of the {len(held_out)} {split} problems ({share:.1%}) are in train, "
                f"data.max_overlap={max_overlap:g}; {'; '.join(cases)}; {remedy(task, split)}"
            )
    return figures


def case(match: Match, train: list[Problem], held_out: list[Problem]) -> str:
    """`train 17 "Natalia sold ..." and 3 "Natalia sold ...": same text`"""

    def shown(text: str) -> str:
        text = " ".join(text.split())
        return f'"{text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."}"'

    ours, theirs = shown(train[match.train].text), shown(held_out[match.held_out].text)
    return f"train {match.train + 1} {ours} is {match.held_out + 1} {theirs}: {match.why}"


def remedy(task: Task, split: Split) -> str:
    files: FilesConfig = task.config.files
    evaluated = getattr(files, split.value)
    if evaluated is None or files.train is None:
        return "take them out of the data file, or raise data.max_overlap"
    return (
        f"take them out of {files.train} (`python -m drift.prepare ... exclude=[{evaluated}]` "
        "does), or raise data.max_overlap"
    )
