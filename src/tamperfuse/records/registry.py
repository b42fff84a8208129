"""Named components: a frozen parameter model and one function, joined by a decorator.

    @defense("sdd", SddParameters, needs_pairs=True)
    def sdd(loaded, data, parameters, seed): ...

Every kind of component (defense, attack, judge) has a decorator of its own whose further arguments are declared, typed and
optional; they are kept as the component's *traits*. Other packages add components through entry points of the registry's
group: `tamperfuse.defenses`, `tamperfuse.attacks`, `tamperfuse.judges`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from itertools import takewhile
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tamperfuse.records.errors import UserError, shown, unknown_name

PLAIN_COPIES = 4  # of the weights that a training holds: weights, gradients and AdamW's two moments, in float32

T = TypeVar("T")
R = TypeVar("R")


def _takes_numbers_only(annotation: Any) -> bool:
    """Whether a type holds numbers, at any depth, and no booleans."""
    parts = get_args(annotation)
    return annotation in (int, float) or (bool not in parts and any(map(_takes_numbers_only, parts)))


class Strict(BaseModel):
    """A model that does not read true and false as 1 and 0, as pydantic does."""

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_no_booleans(cls, values: Any) -> Any:
        for name, info in cls.model_fields.items() if isinstance(values, dict) else ():
            value = values.get(name)
            members = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(member, bool) for member in members) and _takes_numbers_only(info.annotation):
                raise ValueError(f"`{name}` is true or false: it must be a number")
        return values


class Parameters(Strict):
    """Base of all parameters: frozen, no unknown field, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True)
class Budget:
    """What a component's training takes; all zeros for one that does not train.

    Attributes:
        steps: optimizer steps.
        batch: samples in a step.
        shots: distinct answered prompts of the threat that it draws.
        memory_copies: copies of the weights in float32 that it holds in memory: weights, gradients and AdamW's two moments; more
            with a simulated attacker.
        resume_copies: copies in its resume state: weights and moments; more where the objective stores an attacker.
        benign: distinct harmless samples of the attacker (`retain`) that it draws.
    """

    steps: int = 0
    batch: int = 0
    shots: int = 0
    memory_copies: int = PLAIN_COPIES
    resume_copies: int = 3
    benign: int = 0

    @property
    def trains(self) -> bool:
        """Whether there is any optimizer step."""
        return self.steps > 0


def no_training(parameters: Any) -> Budget:
    """The budget of a component that does not train."""
    return Budget()


@dataclass(frozen=True)
class Component(Generic[T, R]):
    """A registered component.

    Attributes:
        name: as users write it.
        run: the function.
        parameters: its parameter model.
        traits: what the study has to know about it, as its decorator declared it.
        version: raised by its author when its results can change; part of every node's key.
    """

    name: str
    run: Callable[..., R]
    parameters: type[Parameters]
    traits: T
    version: int = 1

    @property
    def distribution(self) -> str:
        """Name and version of the plug-in that registered it; "" for tamperfuse's own and for those of a script."""
        return plugin_of(self.run.__module__)

    @property
    def about(self) -> str:
        """First line of the function's docstring."""
        return next(iter((self.run.__doc__ or "").strip().splitlines()), "")

    @property
    def identity(self) -> list[Any]:
        """What a node's key says about the component, besides its parameters."""
        return [self.name, self.version, self.distribution]

    def parse(self, values: dict[str, Any], where: str) -> Any:
        """Validate parameters.

        Args:
            values: by name; a missing one takes its default.
            where: the component's place in the study, for messages.

        Raises:
            UserError: a parameter is unknown (the nearest name is suggested) or out of range.
        """
        for name in values:
            if name not in self.parameters.model_fields:
                raise unknown_name(f"parameter of {where}", name, self.parameters.model_fields)
        try:
            return self.parameters.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "missing":
                raise UserError(f"{shown(where)} needs a value for {first['loc'][0]!r}: set it there.") from error
            place = ".".join(map(str, first["loc"])) or self.name
            value, reason = shown(repr(first["input"])), shown(first["msg"])
            raise UserError(
                f"{shown(where)}: {place} = {value} cannot be used ({reason}): correct it there."
            ) from error


@dataclass
class Registry(Generic[T, R]):
    """All components of one kind.

    Attributes:
        kind: in the singular ("defense").
        group: the entry points' group.
        reserved: names that no parameter may have: a study file and the Python interface have them for other things.
        components: the registered ones, by name.
    """

    kind: str
    group: str
    reserved: frozenset[str] = frozenset()
    components: dict[str, Component[T, R]] = field(default_factory=dict)
    _entry_points_loaded: bool = False

    def register(
        self, name: str, parameters: type[Parameters], traits: T, version: int = 1
    ) -> Callable[[Callable[..., R]], Callable[..., R]]:
        """Decorator that registers a function under a name. The same function may be registered again (in a notebook).

        Raises:
            UserError: another function has that name, or a parameter has a reserved one.
        """
        if taken := sorted(self.reserved & set(parameters.model_fields)):
            raise UserError(
                f"The {self.kind} {name!r} has a parameter {taken[0]!r}, which means something else in a study file or in a "
                "call: rename the parameter."
            )

        def add(run: Callable[..., R]) -> Callable[..., R]:
            present = self.components.get(name)
            if present is not None and _place(present.run) != _place(run):
                owners = [plugin_of(function.__module__) or function.__module__ for function in (present.run, run)]
                raise UserError(
                    f"The {self.kind} {name!r} is registered twice, by {owners[0]} and by {owners[1]}: rename one of them, or "
                    "uninstall one of the two packages."
                )
            self.components[name] = Component(name, run, parameters, traits, version)
            return run

        return add

    def get(self, name: str) -> Component[T, R]:
        """The component of that name.

        Raises:
            UserError: there is none (the nearest name is suggested), or a plug-in cannot be imported.
        """
        self._load_entry_points()
        if not isinstance(name, str) or name not in self.components:
            raise unknown_name(self.kind, name, self.components)
        return self.components[name]

    def all(self) -> list[Component[T, R]]:
        """Every component, by name."""
        self._load_entry_points()
        return [self.components[name] for name in sorted(self.components)]

    def _load_entry_points(self) -> None:
        """Import the modules that other packages name; importing them runs their decorators."""
        if self._entry_points_loaded:
            return
        self._entry_points_loaded = True  # a plug-in may look up components while it is imported
        try:
            for point in entry_points(group=self.group):
                _import_plugin(point)
        except UserError:
            self._entry_points_loaded = False
            raise


def _import_plugin(point: EntryPoint) -> None:
    try:
        point.load()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        package = point.dist.name if point.dist else point.module
        raise UserError(
            f"The plug-in {package} could not be imported ({type(error).__name__}: {' '.join(str(error).split())}): update it, "
            f"or remove it with: pip uninstall {package}"
        ) from error


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


@cache
def plugin_of(module: str) -> str:
    """Name and version of the installed plug-in that a module belongs to; "" for a module of no plug-in.

    It is looked up by the module's name: one plug-in may register components of several kinds when one of its modules is
    imported, and may have been imported before any registry looked for plug-ins.

    Args:
        module: its full name.
    """
    if module.partition(".")[0] == __name__.partition(".")[0]:
        return ""
    points = entry_points()
    best, name = 0, ""
    for group in sorted(points.groups):
        for point in points.select(group=group) if group.startswith("tamperfuse.") else ():
            pairs = zip(module.split("."), point.module.split("."), strict=False)
            common = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
            if point.dist is not None and common > best:
                best, name = common, f"{point.dist.name} {point.dist.version}"
    return name
