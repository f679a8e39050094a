"""The configuration reference: every group, option and setting, from the dataclasses and conf/.

A setting's meaning is the comment at its field, an option's the first comment of its yaml file, as
in `--help`.
"""

import ast
import dataclasses
import inspect
import io
import tokenize
import types
import typing
from collections.abc import Iterator
from enum import Enum, StrEnum
from pathlib import Path
from textwrap import dedent
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from drift.cli.help import description, docstring
from drift.config import GROUPS, register
from drift.config.compose import CONF

WORDS = {int: "integer", float: "number", str: "text", bool: "`true`, `false`"}
TABLE = "| {} | values | default | meaning |\n|---|---|---|---|"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Setting(key="horizon", kind=int | None, default=None, meaning="tokens recomputed")"""

    key: str
    kind: Any
    default: object
    meaning: str

    def row(self, prefix: str, default: object, missing: str) -> str:
        """A row of a table, its default taken from outside; `missing` where there is none."""
        shown = missing if default == MISSING else code(default)
        return row(code(prefix + self.key), values(self.kind), shown, text(self.meaning))


def comments(cls: type) -> dict[str, str]:
    """What is said of each name that a class body defines: behind it, or in the lines above."""
    source = dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    alone = {line for line, token in said.items() if not token.line.partition("#")[0].strip()}
    found: dict[str, str] = {}
    for node in ast.parse(source).body[0].body:  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(node, ast.AnnAssign | ast.Assign):
            continue
        assert node.end_lineno is not None
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        lines = [i for i in range(node.lineno, node.end_lineno + 1) if i in said]
        above = node.lineno - 1
        while above in alone:
            lines.insert(0, above)
            above -= 1
        words = " ".join(said[line].string.lstrip("# ") for line in lines)
        found[ast.unparse(target)] = words
    return found


def settings(schema: type) -> Iterator[Setting]:
    """The settings that a schema adds to its parents', those of its parts as `part.name`."""
    own, hints, said = inspect.get_annotations(schema), typing.get_type_hints(schema), {}
    if own:
        said = comments(schema)
    for field in dataclasses.fields(schema):
        kind = hints[field.name]
        if field.name not in own or is_group(field.name, kind) or field.name == "output_dir":
            continue
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            for part in all_settings(kind):
                yield dataclasses.replace(part, key=f"{field.name}.{part.key}")
            continue
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        meaning = "; ".join(filter(None, [said[field.name], choices_said(kind)]))
        yield Setting(key=field.name, kind=kind, default=default, meaning=meaning)


def all_settings(schema: type) -> Iterator[Setting]:
    """Those of a schema and of its parents, the parents' first."""
    for part in reversed(schema.__mro__[:-1]):
        yield from settings(part)


def is_group(name: str, kind: Any) -> bool:
    """Whether a field is chosen with `name=option`."""
    known = GROUPS[name].values() if name in GROUPS else ()
    return any(issubclass(schema, plain_kind(kind)) for schema in known)


def plain_kind(kind: Any) -> Any:
    """`X` of `X | None`."""
    if isinstance(kind, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def choices_said(kind: Any) -> str:
    """What is said of the choices of an enumeration: "`commit`: stop tokens come last"."""
    kind = plain_kind(kind)
    if not (isinstance(kind, type) and issubclass(kind, StrEnum)):
        return ""
    said = comments(kind)
    return "; ".join(f"`{name}`: {words}" for name, words in said.items() if words)


def values(kind: Any) -> str:
    """What can be put behind the `=`."""
    inner = plain_kind(kind)
    null = ", `null`" if inner is not kind else ""
    if isinstance(inner, type) and issubclass(inner, StrEnum):
        return ", ".join(f"`{member.value}`" for member in inner) + null
    origin = typing.get_origin(inner)
    if origin is list:
        return f"list of {WORDS[typing.get_args(inner)[0]]}" + null
    return ("free settings" if origin is dict else WORDS[inner]) + null


def written(value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, Enum):
        value = value.value
    if value == "":
        return '""'
    if isinstance(value, str):
        return value.replace("\n", "\\n")
    dumped = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return dumped.removesuffix("\n...\n").strip()


def code(value: object) -> str:
    """`value`"""
    return f"`{written(value)}`"


def row(*cells: str) -> str:
    """A row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def text(words: str) -> str:
    """Words that are no Markdown and no HTML."""
    return words.replace("<", "&lt;").replace("*", "\\*")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A yaml file of conf/: Option(name="static", schema=RolloutConfig, sets={"steps": ...})."""

    name: str
    words: str
    schema: type | None
    chosen: dict[str, str]  # group: option
    sets: dict[str, object]

    def row(self) -> str:
        given = {**self.chosen, **self.sets}
        sets = [code(f"{key}={written(value)}") for key, value in given.items() if key != "name"]
        return row(code(self.name), text(self.words), " ".join(sets))


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def read(path: Path) -> Option:
    """What an option or a command says of itself."""
    node = yaml.safe_load(path.read_text(encoding="utf-8"))
    schema, chosen, sets = None, {}, {}
    for entry in node.pop("defaults", []):
        if isinstance(entry, dict):
            groups = {key.split("/")[-1].split()[-1]: option for key, option in entry.items()}
            chosen |= {key: groups[key] for key in groups if key != "launcher"}
        elif entry.startswith(("/schema/", "schema/")):
            schema = schema_of(entry.removeprefix("/").partition("@")[0])
        elif entry != "_self_":  # another option, which this one begins with
            start = read(path.with_name(f"{entry}.yaml"))
            schema, sets = schema or start.schema, start.sets
    node.pop("hydra", None)
    return Option(
        name=path.stem,
        words=description(path),
        schema=schema,
        chosen=chosen,
        sets=sets | dict(flat(node)),
    )


def schema_of(name: str) -> type:
    """The dataclass that is registered as `schema/rollout/base`."""
    found = OmegaConf.get_type(ConfigStore.instance().load(f"{name}.yaml").node)
    assert found is not None
    return found


def default_of(setting: Setting, options: list[Option], group: str) -> object:
    """The dataclass's default; where it leaves that to the options, theirs if they agree."""
    if setting.default != MISSING:
        return setting.default
    given = {str(o.sets[key]) for o in options for key in keys(setting, group) if key in o.sets}
    return given.pop() if len(given) == 1 else MISSING


def keys(setting: Setting, group: str) -> tuple[str, str]:
    """A setting in an option's file, also where that is `@package _global_`."""
    return setting.key, f"{group}.{setting.key}"


def group_section(group: str) -> Iterator[str]:
    """A group: its options, then the settings of each of its schemas."""
    options = [read(path) for path in sorted((CONF / group).glob("*.yaml"))]
    yield f"### {group}\n"
    yield "| option | | sets |\n|---|---|---|"
    yield from (option.row() for option in options)
    seen: list[type] = []
    for schema in GROUPS[group].values() if group in GROUPS else ():
        for part in reversed(schema.__mro__[:-1]):
            if part in seen or not (own := list(settings(part))):
                continue
            seen.append(part)
            of = [o for o in options if o.schema is not None and issubclass(o.schema, part)]
            names = ", ".join(f"`{group}={option.name}`" for option in of)
            title = f"every `{group}`" if len(of) == len(options) else names
            yield f"\nSettings of {title}:\n"
            yield TABLE.format("setting")
            yield from (s.row(f"{group}.", default_of(s, of, group), "by option") for s in own)
    yield ""


def command_section(path: Path) -> Iterator[str]:
    """A command: its groups, what it sets in them, and the settings of its own."""
    command = read(path)
    assert command.schema is not None
    yield f"### drift.{command.name}\n"
    yield docstring(command.name).partition("\n")[0] + "\n"
    if command.chosen:
        links = [f"[{key}](#{key})={value or 'null'}" for key, value in command.chosen.items()]
        yield f"Groups: {', '.join(links)}"
    own = list(all_settings(command.schema))
    here = {s.key for s in own}
    others = {key: value for key, value in command.sets.items() if key not in here}
    if others:
        yield "\nWith " + " ".join(code(f"{k}={written(v)}") for k, v in others.items())
    yield "\n" + TABLE.format("setting")
    yield from (s.row("", command.sets.get(s.key, s.default), "to be given") for s in own)
    yield ""


def reference() -> str:
    """The page's part that is made: commands, then groups."""
    register()
    lines = ["## Commands\n"]
    for path in sorted(CONF.glob("*.yaml")):
        if path.stem != "base":
            lines += command_section(path)
    lines.append("## Groups\n")
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir()):
        lines += group_section(folder.name)
    return "\n".join(lines)


if __name__ == "__main__":
    print(reference())
