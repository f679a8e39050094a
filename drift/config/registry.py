"""Options of a config group by the class of their settings.

A registry knows the group's settings classes by option name, without torch: Hydra's schemas. The
module that implements an option enters its function; code then asks for the function of a config.

    MASKINGS = Registry("masking", {"all": AllConfig, "random": RandomConfig})

    @MASKINGS.implements(AllConfig)
    def all_(trace, rows_B, config, key): ...

    MASKINGS.function(config)(trace, rows_B, config, key)
    MASKINGS.name(config)  # all
"""

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from omegaconf import MISSING

from drift.common.errors import ConfigError

Settings = TypeVar("Settings")
Function = TypeVar("Function", bound=Callable[..., Any])


class Registry(Generic[Settings]):
    """The options of one config group; a subclass of an option's settings counts as that option."""

    def __init__(self, group: str, schemas: dict[str, type[Settings]]):
        """`schemas` has the options' settings by name, for `/schema/<group>/<name>`."""
        self.group = group
        self.schemas = schemas
        self._functions: dict[tuple[type, Hashable], Callable[..., Any]] = {}

    def add(self, name: str, schema: type[Settings]) -> None:
        """Enter another option; before Hydra composes."""
        self.schemas[name] = schema

    def implements(
        self, schema: type[Settings], variant: Hashable = None
    ) -> Callable[[Function], Function]:
        """A decorator that enters the function of a settings class, or one of its variants."""

        def enter(function: Function) -> Function:
            self._functions[schema, variant] = function
            return function

        return enter

    def function(self, config: Settings, variant: Hashable = None) -> Callable[..., Any]:
        """The function of a config's class, or else of the nearest of its bases.

        Raises:
            ConfigError: nothing implements it.
        """
        for kind in type(config).__mro__:
            if (kind, variant) in self._functions:
                return self._functions[kind, variant]
        of = "" if variant is None else f" for {variant}"
        known = sorted({kind.__name__ for kind, other in self._functions if other == variant})
        raise ConfigError(
            f"{self.group}: nothing implements {type(config).__name__}{of}; "
            f"implemented: {', '.join(known) or 'none'}"
        )

    def name(self, config: Settings) -> str:
        """The option whose settings a config holds, by its class or else the nearest of its bases.

        Raises:
            ConfigError: none is registered.
        """
        return self.name_of(type(config))

    def name_of(self, schema: type) -> str:
        """`name` of a settings class."""
        for kind in schema.__mro__:
            for name, known in self.schemas.items():
                if known is kind:
                    return name
        options = ", ".join(self.schemas)
        raise ConfigError(f"{self.group}: {schema.__name__} is of none of its options: {options}")


class Names:
    """The choices of a setting by name, such as `rollout.confidence`.

    What implements them is a dictionary with these keys.
    """

    def __init__(self, setting: str, known: list[str]):
        self.setting, self.known = setting, known

    def add(self, name: str) -> None:
        """Enter another choice; before Hydra composes."""
        self.known.append(name)

    def refused(self, value: str) -> str | None:
        """Why a value cannot be; None if it is one of the choices."""
        if value == MISSING or value in self.known:
            return None
        return f"{self.setting}={value} must be one of {', '.join(self.known)}"
