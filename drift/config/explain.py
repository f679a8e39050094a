"""What is wrong with a command line or a config, in one line."""

import dataclasses
import difflib
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from drift.common.errors import DriftError
from drift.config import GROUPS
from drift.config.bounds import allowed, number_of
from drift.config.compose import CONF

SET_BY_OPTION = {  # settings of earlier versions: the option that is chosen says it
    "masking.strategy": "masking",
    "rollout.remasking": "rollout",
    "curriculum.order": "curriculum",
    "tracking.backend": "tracking",
    "objective.policy_loss": "objective",
}
USER_ERRORS = (DriftError, HydraException, OmegaConfBaseException, yaml.YAMLError, OSError)


def explain(error: BaseException) -> str:
    """One line for a user: the key, the value, what is allowed."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for kind, words in EXPLANATIONS:
        for link in chain:
            if isinstance(link, kind) and (said := words(link)) is not None:
                return said
    return first_line(chain[-1])


def missing_value(error: Any) -> str | None:
    """`input is not set; add input=VALUE`"""
    return f"{error.full_key} is not set; add {error.full_key}=VALUE" if error.full_key else None


def wrong_value(error: Any) -> str | None:
    """`optim.lr: Value 'fast' of type 'str' could not be converted to Float`"""
    key, kind = error.full_key, error.object_type
    if not key:
        return None
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and error.key is not None:
        if said := wrong_number(error, kind):
            return said
        kind = get_type_hints(kind).get(error.key)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        settings = ", ".join(f"{key}.{field.name}" for field in dataclasses.fields(kind))
        return f"{key} is not one value, it holds settings; change one of {settings}"
    if get_origin(kind) is list and isinstance(error.value, str | int | float):
        return f"{key} is a list, which is written {shlex.quote(f'{key}=[{error.value}]')}"
    return f"{key}: {first_line(error)}"


def wrong_number(error: Any, schema: type) -> str | None:
    """`optim.tokens_per_forward=2.5 must be a whole number of at least 1`; None if it is none."""
    number = number_of(schema, error.key)
    if number is None:
        return None
    (of,) = (field for field in dataclasses.fields(schema) if field.name == error.key)
    null = "null or " if type(None) in get_args(get_type_hints(schema)[of.name]) else ""
    value = "null" if error.value is None else error.value
    return f"{error.full_key}={value} must be {null}{allowed(of, number)}"


def broken_yaml(error: Any) -> str:
    """`conf/task/mine.yaml:3: not YAML: mapping values are not allowed here`"""
    mark = error.problem_mark
    return f"{mark.name}:{mark.line + 1}: not YAML: {error.problem}" if mark else first_line(error)


def unreadable_override(error: Any) -> str:
    """`task.prompt={x}: cannot be read; close ..., or quote a text twice: 'task.prompt="{x}"'`"""
    key, equals, value = error.override.partition("=")
    if not equals or not re.fullmatch(r"[+~]{0,2}[\w./@:-]+", key):
        return f"{error.override}: cannot be read; write overrides as key=value"
    text = value.strip("'\"").replace('"', '\\"')
    quoted = shlex.quote(f'{key}="{text}"')
    return (
        f"{error.override}: cannot be read; close its brackets and quotes, or quote a text for "
        f"the shell and for Hydra: {quoted}"
    )


def forgotten_multirun(error: Any) -> str | None:
    """`masking=all,trace: several values are a sweep, which needs -m; ...`"""
    found = re.match(r"(Ambiguous value|Sweep parameters).*?'(.*)'", str(error))
    if not found:
        return None
    words = f"{found[2]}: several values are a sweep, which needs -m"
    if found[1] == "Sweep parameters":  # range(1,3)
        return words
    key, _, value = found[2].partition("=")
    a_list, a_text = (shlex.quote(f"{key}={written}") for written in (f"[{value}]", f'"{value}"'))
    return f"{words}; a list is written {a_list}, a text with commas {a_text}"


def failed_file(error: Any) -> str:
    """`outputs/run: Not a directory`"""
    return f"{error.filename or 'input/output'}: {error.strerror or error}"


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def unknown_option(error: Any) -> str | None:
    """`rollout.gen_lenght: no such option; did you mean gen_length; options: ...`"""
    if not error.full_key:
        return None
    group, _, name = str(error.full_key).rpartition(".")
    if error.full_key in SET_BY_OPTION:
        value = written(error.full_key) or "OPTION"
        options = ", ".join(options_of(group))
        return f"{error.full_key}: the option says it; write {group}={value}; options: {options}"
    schema = error.object_type
    if said := of_another_option(error.full_key, name, schema):
        return said
    if schema is dict:  # free settings, as task.options
        return f"{error.full_key}: no setting so far; a new one is written +{error.full_key}=VALUE"
    allowed: list[str] = []
    if isinstance(schema, type) and dataclasses.is_dataclass(schema):
        allowed = [field.name for field in dataclasses.fields(schema) if field.name != "output_dir"]
    near = [f"{group + '.' if group else ''}{word}" for word in closest(name, allowed)]
    near += [] if group else [f"{of}.{name}" for of in groups_with(name) if of in allowed]
    hint = f"; did you mean {' or '.join(near)}" if near else ""
    known = f"; options here: {', '.join(allowed)}" if allowed else ""
    return f"{error.full_key}: no such option{hint}{known}"


def written(key: str) -> str | None:
    """The value that the command line gives a setting."""
    words = (word.lstrip("+").partition("=") for word in sys.argv[1:])
    return next((value for own, _, value in words if own == key), None)


def of_another_option(key: str, name: str, schema: Any) -> str | None:
    """`rollout.schedule=dream applies to rollout=static only; use rollout=static`"""
    for group, schemas in GROUPS.items():
        if schema in schemas.values() and (having := options_with(group, name)):
            value = written(key)
            setting = key if value is None else f"{key}={value}"
            *others, last = having
            options = f"{', '.join(others)} or {last}" if others else last
            use = "one of these" if others else f"{group}={last}"
            return f"{setting} applies to {group}={options} only; use {use}"
    return None


def options_with(group: str, name: str) -> list[str]:
    """The options of a group that have a setting of that name: ["static"] for `schedule`."""
    having: list[str] = []
    for option in options_of(group):
        schema = GROUPS[group].get(schema_of(group, option))
        if schema and any(field.name == name for field in dataclasses.fields(schema)):
            having.append(option)
    return having


def schema_of(group: str, option: str) -> str:
    """The name of an option's settings: "ppo_clip" for `objective=grpo`, "" if it has none."""
    text = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8")
    if found := re.search(rf"/schema/{group}/(\w+)@", text):
        return found[1]
    base = re.search(r"^defaults: \[(\w+),", text, re.MULTILINE)  # another option, as math
    return schema_of(group, base[1]) if base else ""


def closest(name: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=1)


def groups_with(name: str) -> list[str]:
    """The groups that have a setting of that name: ["optim", "model"] for `lr`."""
    return [
        group
        for group, schemas in GROUPS.items()
        if any(
            name == field.name
            for schema in schemas.values()
            for field in dataclasses.fields(schema)
        )
    ]


def unknown_choice(error: Any) -> str:
    """`model=lada: no such option of the group; did you mean llada; options: dream, llada, tiny`"""
    choice = str(error.missing_cfg_file or "")
    group, _, name = choice.rpartition("/")
    options = sorted(error.options or options_of(group))
    if not options:  # a file names what is nowhere
        return first_line(error)
    file = re.match(r"In '(.+/.+?)':", str(error))  # one of conf/ alone is the command's own
    where = f"{file[1]}.yaml: " if file else ""
    near = closest(name, options)
    hint = f"; did you mean {near[0]}" if near else ""
    return (
        f"{where}{group}={name}: no such option of the group{hint}; options: {', '.join(options)}"
    )


def options_of(group: str) -> list[str]:
    """The options that conf/ has of a group, sorted; empty if it is none."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml")) if group else []


def no_option(error: Any) -> str | None:
    """`tracking=null: choose one of mlflow, off, wandb`; Hydra does not name the word."""
    if not str(error).startswith("Config group override must be"):
        return None
    parse = OverridesParser.create().parse_override
    for word in sys.argv[1:]:
        options = options_of(word.partition("=")[0].lstrip("+"))
        if not options or (override := parse(word)).is_sweep_override():
            continue
        if not isinstance(override.value(), str | list):
            return f"{word}: choose one of {', '.join(options)}"
    return "a group takes the name of one of its options"


def group_not_chosen(error: Any) -> str | None:
    """`tracking.uri=...: no tracking is chosen; add tracking=OPTION, ...`; nor does Hydra here."""
    if not str(error).startswith("Unexpected type for root: NoneType"):
        return None
    for word in sys.argv[1:]:
        group = word.partition("=")[0].partition(".")[0]
        options = options_of(group)
        if options and not any(other.startswith(f"{group}=") for other in sys.argv):
            return f"{word}: no {group} is chosen; add {group}=OPTION, one of {', '.join(options)}"
    return None


EXPLANATIONS: tuple[tuple[type[Exception], Callable[[Any], str | None]], ...] = (
    (DriftError, str),
    (yaml.MarkedYAMLError, broken_yaml),
    (ConfigKeyError, unknown_option),
    (ConfigAttributeError, unknown_option),
    (MissingConfigException, unknown_choice),
    (OverrideParseException, unreadable_override),
    (ConfigCompositionException, forgotten_multirun),
    (MissingMandatoryValue, missing_value),
    (OmegaConfBaseException, wrong_value),
    (OSError, failed_file),
    (ValueError, no_option),
)
