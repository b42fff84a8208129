"""Named components: a frozen parameter model and one function, joined by a decorator.

    @defense("sdd", SddParameters, version=1)
    def sdd(loaded, given, parameters, seed): ...

Other packages add theirs through entry points of the registry's group (`tamperfuse.defenses`, `tamperfuse.attacks`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tamperfuse.records.errors import UserError, unknown_name

F = TypeVar("F", bound=Callable[..., Any])


class Parameters(BaseModel):
    """Base of all parameters: frozen, nothing unknown, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Component(Generic[F]):
    """A registered component.

    Attributes:
        name: as users write it.
        run: the function.
        parameters: its parameter model.
        version: raised when its results can change; part of every node's key.
        traits: what the study must know of it (`malicious`, `needs_pairs`, …).
    """

    name: str
    run: F
    parameters: type[Parameters]
    version: int
    traits: dict[str, Any]

    @property
    def about(self) -> str:
        """First line of the function's docstring."""
        return (self.run.__doc__ or "").strip().splitlines()[0]

    def parse(self, values: dict[str, Any], where: str) -> Parameters:
        """Validate parameters.

        Raises:
            UserError: an unknown name (the nearest is offered) or a value out of range.
        """
        for name in values:
            if name not in self.parameters.model_fields:
                raise unknown_name(f"parameter of {where}", name, self.parameters.model_fields)
        try:
            return self.parameters.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or self.name
            raise UserError(f"{where}: {place} = {first['input']!r} cannot be used ({first['msg']}).") from error


@dataclass
class Registry(Generic[F]):
    """All components of one kind.

    Attributes:
        kind: in the singular ("defense").
        group: the entry points' group.
    """

    kind: str
    group: str
    known: dict[str, Component[F]] = field(default_factory=dict)
    _extended: bool = False

    def register(self, name: str, parameters: type[Parameters], *, version: int = 1, **traits: Any) -> Callable[[F], F]:
        """Decorator that registers a function under a name."""

        def keep(run: F) -> F:
            self.known[name] = Component(name, run, parameters, version, traits)
            return run

        return keep

    def get(self, name: str) -> Component[F]:
        """The component of that name.

        Raises:
            UserError: there is none; the nearest is offered.
        """
        self._extend()
        if name not in self.known:
            raise unknown_name(self.kind, name, self.known)
        return self.known[name]

    def all(self) -> list[Component[F]]:
        """Every component, by name."""
        self._extend()
        return [self.known[name] for name in sorted(self.known)]

    def _extend(self) -> None:
        if not self._extended:
            self._extended = True
            for point in entry_points(group=self.group):
                point.load()  # importing the module runs its decorators
