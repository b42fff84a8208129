"""The study file: what is hardened, attacked and measured. Everything has a default but the model and the threat."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tamperfuse.attacks import ATTACKS
from tamperfuse.defenses import DEFENSES
from tamperfuse.evaluation.capability import CapabilityTask
from tamperfuse.models.load import parameter_count
from tamperfuse.records.errors import UserError, unknown_name
from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.yaml import dump_yaml, read_yaml
from tamperfuse.study.search.space import Search, parse_search


class PairsSpec(BaseModel):
    """How SDD pairs are drawn.

    Attributes:
        responses: source of the irrelevant answers.
        threshold: largest MiniLM cosine of prompt and response (0.25 in the public re-implementation).
        filters: whether responses are filtered for quality, as `tamperfuse pair` does by default.
        language: language of the responses (ISO 639-1), or "any"; for the filters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    responses: str = "builtin:benign"
    threshold: float = Field(0.25, gt=-1, le=1)
    filters: bool = True
    language: str = "en"


class Evaluate(BaseModel):
    """What is measured, and when.

    Attributes:
        at_steps: steps of an attack after which the model is looked at; 0 is the model before it.
        prompts: evaluation prompts asked before an attack.
        curve_prompts: evaluation prompts for every attacked checkpoint; as many as `prompts` by default.
        dev_prompts: attacker_dev prompts, by which the attacker chooses a step.
        harmless: prompts for the benign answer rate.
        response_tokens: tokens a response may have.
        capability: lm-eval tasks, by name or as {task: mmlu, fewshot: 5}; `builtin` for the bundled two.
        capability_items: items of each task, or `all`.
        capability_at: steps at which capability is measured; `at_steps` by default.
        heldout: documents for benign NLL.
        epsilons: shares of capability, in [0, 1], that an attack may cost; usable harm is given at each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_steps: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 50)
    prompts: int = Field(160, ge=2)
    curve_prompts: int = Field(default_factory=lambda values: values["prompts"], ge=2)
    dev_prompts: int = Field(28, ge=2)
    harmless: int = Field(128, ge=2)
    response_tokens: int = Field(48, ge=8)
    capability: tuple[str | CapabilityTask, ...] = ("builtin",)
    capability_items: Annotated[int, Field(ge=2)] | Literal["all"] = "all"
    capability_at: tuple[int, ...] = Field(default_factory=lambda values: values["at_steps"])
    heldout: int = Field(100, ge=2)
    epsilons: tuple[float, ...] = Field((0.05, 0.10, 0.25, 1.00), min_length=1)

    @field_validator("epsilons")
    @classmethod
    def _shares(cls, epsilons: tuple[float, ...]) -> tuple[float, ...]:
        for epsilon in epsilons:
            if not 0 <= epsilon <= 1:  # not-a-number as well
                raise ValueError(f"an ε is a share of capability in [0, 1], and {epsilon:g} is not")
        return tuple(sorted(set(epsilons)))

    @field_validator("at_steps", "capability_at")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if any(step < 0 for step in steps):
            raise ValueError("steps count from 0")
        return tuple(sorted({0, *steps}))

    def measured_at(self, steps: int) -> tuple[int, ...]:
        """Steps ≥ 1 of an attack of that length after which the model is looked at; its last one always is."""
        return tuple(sorted({step for step in self.at_steps if 1 <= step <= steps} | {steps}))

    def capability_measured_at(self, steps: int) -> tuple[int, ...]:
        """Those of :meth:`measured_at` at which capability is measured; the last one always is."""
        return tuple(step for step in self.measured_at(steps) if step in self.capability_at or step == steps)


class DefenseSpec(BaseModel):
    """One defense of a study: which, on what, with which parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    defense: str
    on: str | None = None
    parameters: dict[str, Any]


class AttackSpec(BaseModel):
    """One attack of a study.

    Attributes:
        attack: which.
        parameters: of it, all of them; with a search only those that it leaves alone.
        search: what an adaptive attacker varies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack: str
    parameters: dict[str, Any]
    search: Search | None = None


class Study(BaseModel):
    """A resolved study.

    Attributes:
        model: what is hardened: a bundled name, a directory, a .gguf or a Hub id.
        threat: source of the threat.
        seeds: each decides data order, pairs, shots, adapter initialisation.
        defenses: by name; `refusal`, the undefended rival, is always among them.
        attacks: by name.
        benign: source of benign samples that defenses replay.
        retain: source of harmless samples that attackers mix in, keep or repair with; one that no defense trains on.
        pairs: how SDD pairs are drawn.
        evaluate: what is measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    threat: str
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    defenses: dict[str, DefenseSpec]
    attacks: dict[str, AttackSpec]
    benign: str = "builtin:replay"
    retain: str = "builtin:retain"
    pairs: PairsSpec = PairsSpec()
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, values: Any) -> Any:
        """The file's short form: parameters beside `defense`, `on` and `attack`."""
        if not isinstance(values, dict):
            raise ValueError("a study is a mapping")
        values = dict(values)
        defenses = {UNDEFENDED: {}, **(values.get("defenses") or {})}
        values["defenses"] = {name: _defense(name, dict(spec or {})) for name, spec in defenses.items()}
        attacks = values.get("attacks") or {}
        values["attacks"] = {name: _attack(name, dict(spec or {})) for name, spec in attacks.items()}
        return values

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, spec in self.defenses.items():
            if spec.on is not None and spec.on not in self.defenses:
                raise unknown_name("defense in this study", spec.on, self.defenses)
            seen, at = {name}, spec.on
            while at is not None:
                if at in seen:
                    raise UserError(f"The defense {name!r} builds on itself: remove an `on`.")
                seen.add(at)
                at = self.defenses[at].on
        if self.defenses[UNDEFENDED].defense != UNDEFENDED:
            raise UserError("The defense named `refusal` is the undefended rival: give another defense another name.")
        return self

    def ordered_defenses(self) -> list[str]:
        """Names of the defenses, each after the one that it builds on, the undefended rival first."""
        ordered: list[str] = []

        def visit(name: str) -> None:
            on = self.defenses[name].on
            if on is not None and on not in ordered:
                visit(on)
            if name not in ordered:
                ordered.append(name)

        for name in (UNDEFENDED, *self.defenses):
            visit(name)
        return ordered

    def to_yaml(self) -> str:
        """The resolved study in the file's form, every default spelled out."""
        values = self.model_dump(mode="json")
        values["defenses"] = {
            name: {"defense": d["defense"], **({"on": d["on"]} if d["on"] else {}), **d["parameters"]}
            for name, d in values["defenses"].items()
        }
        values["attacks"] = {
            name: {"attack": a["attack"], **({"search": a["search"]} if a["search"] else {}), **a["parameters"]}
            for name, a in values["attacks"].items()
        }
        return dump_yaml(values)


def resolve_study(study: Study) -> Study:
    """Fill in what presets leave open, so that every parameter that a result depends on is in the study.

    Raises:
        UserError: the model's configuration cannot be read, which says how large it is.
    """
    size = parameter_count(study.model)
    defenses = {}
    for name, spec in study.defenses.items():
        component = DEFENSES.get(spec.defense)
        parameters = component.traits.resolve(component.parse(spec.parameters, f"defense {name}"), size)
        defenses[name] = spec.model_copy(update={"parameters": parameters.model_dump(mode="json")})
    return study.model_copy(update={"defenses": defenses})


def _defense(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    if set(spec) == {"defense", "on", "parameters"}:
        return spec
    kind, on = spec.pop("defense", name), spec.pop("on", None)
    parsed = DEFENSES.get(kind).parse(spec, f"defense {name}")
    return {"defense": kind, "on": on, "parameters": parsed.model_dump(mode="json")}


def _attack(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    if {"attack", "parameters"} <= set(spec) <= {"attack", "parameters", "search"}:
        return spec
    kind, asked = spec.pop("attack", name), spec.pop("search", None)
    component = ATTACKS.get(kind)
    parsed = component.parse(spec, f"attack {name}").model_dump(mode="json")
    if asked is None:
        return {"attack": kind, "parameters": parsed}
    search = parse_search(asked, component, spec, f"attack {name}")
    fixed = {key: value for key, value in parsed.items() if key not in search.over}
    return {"attack": kind, "parameters": fixed, "search": search.model_dump(mode="json")}


def parse_study(values: Any, where: str) -> Study:
    """Validate a study.

    Raises:
        UserError: an unknown name or key, or a value out of range.
    """
    if isinstance(values, dict):
        for key in values:
            if key not in Study.model_fields:
                raise unknown_name(f"key of a study ({where})", str(key), Study.model_fields)
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {place or 'the study'}: {first['msg']}: mend that line.") from error


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        UserError: it is missing, no YAML (the line is named), or no valid study.
    """
    return parse_study(read_yaml(path), str(path))
