"""The study file: what is hardened, attacked and measured.

    model: smollm2-135m
    threat: builtin:cooking
    defenses:
      sdd: {on: refusal}                                # parameters stand beside `defense` and `on`
    attacks:
      full: {attack: harmful_finetune, shots: 50}       # parameters stand beside `attack` and `search`
    judge: builtin                                      # a name, or {judge: builtin, tolerated: 0.05}
    judges:
      phrases: {}                                       # further judges; parameters stand beside `judge`

Everything has a default except the model and the threat. A defense or an attack whose own name is left out is called as its
entry. The undefended model, `refusal`, is always among the defenses.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from tamperfuse.attacks import ATTACKS
from tamperfuse.defenses import DEFENSES
from tamperfuse.evaluation.capability_tasks import CapabilityTask
from tamperfuse.evaluation.judges import JUDGES
from tamperfuse.models.load import parameter_count
from tamperfuse.records.errors import LARGEST_SEED, UserError, shown, unknown_name
from tamperfuse.records.registry import Registry, Strict
from tamperfuse.records.results import AS_SHIPPED, UNDEFENDED
from tamperfuse.records.yaml import dump_yaml, read_yaml
from tamperfuse.study.sections import (
    DEFAULT_JUDGE,
    AttackSpec,
    BenignSpec,
    DefenseSpec,
    Evaluate,
    JudgeSpec,
    PairsSpec,
    as_mapping,
    expand_attack,
    expand_defense,
    named,
    parse_judge,
    parse_judges,
    stated_parameters,
    without_none,
)

LARGEST_STUDY = 10_000  # models that a study measures


class Study(Strict):
    """A study.

    Attributes:
        model: the model to harden: a bundled name, a directory, a .gguf or a Hub id.
        threat: source of the prompts that the hardened model must not execute: `builtin:NAME`, a file, a folder or a Hub data
            set.
        chat_template: file with a chat template (Jinja) in place of the tokenizer's, for base models, which have none; empty for
            the tokenizer's.
        seeds: each decides data order, pairs, shots, adapter initialisation; everything is run for every seed.
        defenses: the defenses to compare, by a name of your choice; `refusal`, the undefended model, is always among them.
        attacks: the attacks on each of them, by a name of your choice; those that are not malicious are controls.
        benign: benign samples on which defenses keep the model's behaviour: a source, a list of sources, or a mapping.
        retain: source of harmless samples that attackers mix in or repair with; no defense trains on it.
        pairs: how SDD pairs are drawn.
        judge: decides which responses execute their request, and with that where attackers stop: a name, or a mapping;
            `builtin` by default.
        judges: further judges of the same responses, by name; they decide nothing.
        evaluate: what is measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    threat: str
    chat_template: str = ""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    defenses: dict[str, DefenseSpec] = Field(default_factory=dict)
    attacks: dict[str, AttackSpec] = Field(default_factory=dict)
    benign: BenignSpec = BenignSpec()
    retain: str = "builtin:retain"
    pairs: PairsSpec = PairsSpec()
    judge: JudgeSpec = Field(default_factory=lambda: parse_judge(DEFAULT_JUDGE))
    judges: dict[str, JudgeSpec] = Field(default_factory=dict)
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, values: Any) -> Any:
        """The file's short form: parameters beside `defense`, `on` and `attack`."""
        if not isinstance(values, dict):
            raise ValueError("a study is a mapping")
        # A key without a value, as where all its lines are comments, stands for its default.
        values = {key: value for key, value in values.items() if value is not None}
        defenses = {UNDEFENDED: {}, **named(values.get("defenses"), "`defenses`")}
        attacks = named(values.get("attacks"), "`attacks`")
        values["defenses"] = {
            name: expand_defense(name, as_mapping(spec, f"defense {name}")) for name, spec in defenses.items()
        }
        values["attacks"] = {
            name: expand_attack(name, as_mapping(spec, f"attack {name}")) for name, spec in attacks.items()
        }
        values["judge"] = parse_judge(values.get("judge", DEFAULT_JUDGE))
        values["judges"] = parse_judges(values.get("judges"), values["judge"])
        return values

    @field_validator("seeds")
    @classmethod
    def _usable_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        for seed in seeds:
            if not 0 <= seed <= LARGEST_SEED:
                raise ValueError(f"{shown(seed)} is no seed: a seed is a whole number from 0 to {LARGEST_SEED}")
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is repeated")
        return seeds

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        states = len(self.seeds) * len(self.defenses) * (1 + len(self.attacks))
        if states > LARGEST_STUDY:
            raise UserError(
                f"The study has {len(self.seeds)} seeds, {len(self.defenses)} defenses and {len(self.attacks)} attacks, "
                f"{states:,} models to measure, and at most {LARGEST_STUDY:,} are possible: split it into several studies."
            )
        return self

    @field_validator("benign", mode="before")
    @classmethod
    def _expand_sources(cls, benign: Any) -> Any:
        """The file's short forms: one source, or a list of them."""
        if isinstance(benign, str):
            return {"sources": [benign]}
        return {"sources": benign} if isinstance(benign, list | tuple) else benign

    @field_validator("model", "threat", "retain")
    @classmethod
    def _not_empty(cls, source: str) -> str:
        if not source.strip():
            raise ValueError("it is empty")
        return source

    @field_validator("model", "threat", "retain", "chat_template")
    @classmethod
    def _expand_home(cls, source: str) -> str:
        return os.path.expanduser(source)

    @model_validator(mode="after")
    def _check_defenses(self) -> Self:
        for spec in self.defenses.values():
            if spec.on is not None and spec.on not in self.defenses:
                raise unknown_name("defense in this study", spec.on, self.defenses)
        for name, spec in self.defenses.items():
            ancestors, base = [name], spec.on
            while base is not None:
                if base in ancestors:
                    raise _cycle([*ancestors[ancestors.index(base) :], base])
                ancestors.append(base)
                base = self.defenses[base].on
        if AS_SHIPPED in self.defenses:
            raise UserError(f"No defense can be named {AS_SHIPPED!r}, which is the model before hardening: rename it.")
        if self.defenses[UNDEFENDED].defense != UNDEFENDED:
            raise UserError("The defense named `refusal` is the undefended model: give another defense another name.")
        return self

    def ordered_defenses(self) -> list[str]:
        """Names of the defenses, each after the one that it starts from, the undefended model first."""
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
        """The resolved study in the file's form, every default spelled out.

        What is off (None) is left out, except where a component would read its absence as something else.
        """
        specs = self.model_dump(mode="json")
        values = without_none(specs)
        values["defenses"] = {name: _short_form(DEFENSES, spec, "on") for name, spec in specs["defenses"].items()}
        values["judge"] = _short_form(JUDGES, specs["judge"])
        values["judges"] = {name: _short_form(JUDGES, spec) for name, spec in specs["judges"].items()}
        values["attacks"] = {name: _short_form(ATTACKS, spec, "search") for name, spec in specs["attacks"].items()}
        return dump_yaml(values)


def _cycle(names: Sequence[str]) -> UserError:
    """The error for defenses each of which starts from the next one, the last of them being the first."""
    if len(names) == 2:
        return UserError(
            f"The defense {shown(names[0])} starts from itself: remove its `on`, or name another defense there."
        )
    return UserError(
        f"The defenses {shown(' → '.join(names))} start from one another in a circle, so none of them can be the first: remove "
        "the `on` of one of them, or name another defense there."
    )


def resolve_study(study: Study, size: int | None = None) -> Study:
    """Replace presets by their values, so that every parameter that a result depends on is in the study.

    Args:
        study: the study.
        size: parameters of its model; None to read its configuration.

    Raises:
        UserError: the model's configuration cannot be read, which says how large it is.
    """
    size = parameter_count(study.model) if size is None else size
    defenses = {}
    for name, spec in study.defenses.items():
        component = DEFENSES.get(spec.defense)
        parameters = component.traits.resolve(component.parse(spec.parameters, f"defense {name}"), size)
        defenses[name] = spec.model_copy(update={"parameters": parameters.model_dump(mode="json")})
    return study.model_copy(update={"defenses": defenses})


_OF_TYPE = re.compile(r"constrained-\w+|literal\[.*\]|function-.*|tuple\[.*\]|CapabilityTask|str")


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
        # Of a value that may have several types the error that lies deepest is that of the type which was meant.
        first = max(error.errors(), key=lambda one: len(one["loc"]))
        if first["type"] == "extra_forbidden":
            raise _unknown_key(first["loc"], where) from error
        # The types that a value may have are part of the place, such as `constrained-int`.
        parts = [str(part) for i, part in enumerate(first["loc"]) if i < 2 or not _OF_TYPE.fullmatch(str(part))]
        place, value = ".".join(parts), first["input"]
        cause = "" if isinstance(value, dict) else f" is {shown(repr(value))}"
        reason = shown(first["msg"].removeprefix("Value error, "))
        raise UserError(
            f"{where}: {shown(place or 'the study')}{cause}, which cannot be used ({reason}): correct it there."
        ) from error


def _unknown_key(place: Sequence[str | int], where: str) -> UserError:
    """The error for a key that a section of a study does not have."""
    section, key = str(place[0]), str(place[-1])
    annotation = CapabilityTask if CapabilityTask.__name__ in place else Study.model_fields[section].annotation
    fields = getattr(annotation, "model_fields", {})
    return unknown_name(f"key of `{section}` ({where})", key, fields)


def _short_form(registry: Registry[Any, Any], spec: dict[str, Any], beside: str = "") -> dict[str, Any]:
    """A defense, an attack or a judge as a file holds it: its name, the field `beside` if it is set, and its parameters."""
    name = spec[registry.kind]
    field = {beside: spec[beside]} if spec.get(beside) else {}
    return {registry.kind: name, **field, **stated_parameters(registry.get(name), spec["parameters"])}


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        UserError: it is missing, not YAML (the line is named), or not a valid study.
    """
    return parse_study(read_yaml(path), str(path))
