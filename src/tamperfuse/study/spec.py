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
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tamperfuse.attacks import ATTACKS
from tamperfuse.defenses import DEFENSES
from tamperfuse.evaluation.capability import CapabilityTask
from tamperfuse.evaluation.judges import JUDGES
from tamperfuse.models.load import parameter_count
from tamperfuse.records.errors import LARGEST_SEED, UserError, shown, unknown_name
from tamperfuse.records.results import AS_SHIPPED, UNDEFENDED
from tamperfuse.records.yaml import dump_yaml, read_yaml
from tamperfuse.study.search.space import Search, parse_search

DEFAULT_JUDGE = "builtin"
LARGEST_STUDY = 10_000  # models that a study measures
RESPONSE_TOKENS = 48  # longest response that is generated, judged and trained on, unless a study sets another


class PairsSpec(BaseModel):
    """How SDD pairs are drawn.

    Attributes:
        responses: source of the irrelevant answers.
        per_prompt: responses that each prompt is paired with, at most. The paper has one, which a small model memorises.
        pool: responses that are used at all, a random sample of the source's. A small model learns a few as answers to every
            prompt of the threat; of hundreds, none becomes likelier than the answer itself.
        threshold: largest MiniLM cosine of prompt and response (0.25 in the public re-implementation).
        filters: whether responses are filtered for quality, as `tamperfuse pair` does by default.
        language: language of the responses (ISO 639-1), or "any"; for the filters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    responses: str = "builtin:benign"
    per_prompt: int = Field(6, ge=1, le=100)
    pool: int = Field(6, ge=1)
    threshold: float = Field(0.25, gt=-1, le=1)
    filters: bool = True
    language: str = "en"

    @field_validator("responses")
    @classmethod
    def _expand_home(cls, source: str) -> str:
        return os.path.expanduser(source)


class BenignSpec(BaseModel):
    """Which benign samples a defense trains on to keep the model's behaviour; the model's own answers are used in any case.

    Attributes:
        sources: `self` for prompts that the model writes itself, and sources of harmless prompts, which the model answers; they
            can be combined.
        prompts: number of prompts that the model writes itself; those near the threat, built-in questions and plain text are
            added, in proportion (docs/defenses.md).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[str, ...] = Field(("self",), min_length=1)
    prompts: int = Field(1_000, ge=4, le=100_000)

    @field_validator("sources")
    @classmethod
    def _expand_home(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        if not all(source.strip() for source in sources):
            raise ValueError("a source is empty")
        return tuple(dict.fromkeys(os.path.expanduser(source) for source in sources))


class Evaluate(BaseModel):
    """What is measured, and at which steps of an attack.

    Attributes:
        at_steps: steps of an attack after which the model is measured; 0 is the model before it.
        prompts: evaluation prompts for the model before an attack.
        curve_prompts: evaluation prompts for every attacked checkpoint; as many as `prompts` by default.
        dev_prompts: attacker_dev prompts, by which the attacker chooses a step.
        harmless: prompts for the benign answer rate.
        response_tokens: longest response, in tokens.
        capability: lm-eval tasks, at least one, by name or as {task: mmlu, fewshot: 5}; `builtin` for the two bundled ones.
        capability_items: items of each task, or `all`.
        capability_at: steps at which capability is measured; `at_steps` by default.
        heldout: documents for benign NLL.
        epsilons: shares of capability, in [0, 1], that an attack may cost; usable harm is reported for each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_steps: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 50)
    prompts: int = Field(160, ge=2)
    curve_prompts: int = Field(default_factory=lambda values: values["prompts"], ge=2)
    dev_prompts: int = Field(28, ge=2)
    harmless: int = Field(128, ge=2)
    response_tokens: int = Field(RESPONSE_TOKENS, ge=8)
    capability: tuple[str | CapabilityTask, ...] = Field(("builtin",), min_length=1)
    capability_items: Annotated[int, Field(ge=2)] | Literal["all"] = "all"
    capability_at: tuple[int, ...] = Field(default_factory=lambda values: values["at_steps"])
    heldout: int = Field(200, ge=2)
    epsilons: tuple[float, ...] = Field((0.05, 0.10, 0.25, 1.00), min_length=1)

    @field_validator("capability")
    @classmethod
    def _expand_home(cls, tasks: tuple[str | CapabilityTask, ...]) -> tuple[str | CapabilityTask, ...]:
        return tuple(
            os.path.expanduser(task)
            if isinstance(task, str)
            else task.model_copy(update={"task": os.path.expanduser(task.task)})
            for task in tasks
        )

    @field_validator("epsilons")
    @classmethod
    def _shares(cls, epsilons: tuple[float, ...]) -> tuple[float, ...]:
        for epsilon in epsilons:
            if not 0 <= epsilon <= 1:  # also true for not-a-number
                raise ValueError(f"{epsilon:g} is no share of capability in [0, 1]")
        return tuple(sorted(set(epsilons)))

    @field_validator("at_steps", "capability_at")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if any(step < 0 for step in steps):
            raise ValueError("steps count from 0")
        return tuple(sorted({0, *steps}))

    def measured_at(self, steps: int) -> tuple[int, ...]:
        """Steps ≥ 1 of an attack of that length after which the model is measured; the last step always is."""
        return tuple(sorted({step for step in self.at_steps if 1 <= step <= steps} | {steps}))

    def capability_measured_at(self, steps: int) -> tuple[int, ...]:
        """Those of :meth:`measured_at` at which capability is measured too; the last step always is."""
        return tuple(step for step in self.measured_at(steps) if step in self.capability_at or step == steps)


class DefenseSpec(BaseModel):
    """One defense of a study.

    Attributes:
        defense: its name, as `tamperfuse list defenses` prints it; the entry's own name if a file leaves it out.
        on: the defense whose hardened model it starts from; the model as shipped where None.
        parameters: of the defense; in a file they stand beside `defense` and `on`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    defense: str
    on: str | None = None
    parameters: dict[str, Any]


class AttackSpec(BaseModel):
    """One attack of a study.

    Attributes:
        attack: its name, as `tamperfuse list attacks` prints it; the entry's own name if a file leaves it out.
        parameters: of the attack; with a search, those that it does not vary. In a file they stand beside `attack` and
            `search`.
        search: what an adaptive attacker varies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack: str
    parameters: dict[str, Any]
    search: Search | None = None


class JudgeSpec(BaseModel):
    """Which judge, with which parameters.

    Attributes:
        judge: its name, as `tamperfuse list judges` prints it.
        parameters: of the judge; in a file they stand beside `judge`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: str
    parameters: dict[str, Any]


def parse_judge(spec: Any) -> JudgeSpec:
    """A judge by name, or as a mapping of `judge` and its parameters.

    Raises:
        UserError: an unknown judge or parameter, or a value out of range.
    """
    if isinstance(spec, JudgeSpec):
        return spec
    if not isinstance(spec, str | dict):
        raise UserError(
            f"judge: {shown(repr(spec))} is not a judge: write its name, or a mapping of `judge` and its parameters."
        )
    values: dict[str, Any] = {"judge": spec} if isinstance(spec, str) else dict(spec)
    name = _name(values, "judge", DEFAULT_JUDGE, "judge")
    if set(values) == {"parameters"}:
        values = _mapping(values["parameters"], f"judge {name}: `parameters`")
    parameters = JUDGES.get(name).parse(values, f"judge {name}")
    return JudgeSpec(judge=name, parameters=parameters.model_dump(mode="json"))


def _judges(values: Any, first: JudgeSpec) -> dict[str, JudgeSpec]:
    """The further judges of a study by name: a mapping of names to judges, whose own name may be left out.

    Raises:
        UserError: as :func:`parse_judge`, or one has the name of the judge that decides.
    """
    judges = {}
    for name, spec in _mapping(values, "`judges`").items():
        if name == first.judge:
            raise UserError(f"judges: {name} is the name of the judge that decides: choose another name, or remove it.")
        mapping = spec if isinstance(spec, JudgeSpec | str) else _mapping(spec, f"judge {name}")
        judges[name] = parse_judge({"judge": name, **mapping} if isinstance(mapping, dict) else mapping)
    return judges


class Study(BaseModel):
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
        values = dict(values)
        defenses = {UNDEFENDED: {}, **_mapping(values.get("defenses"), "`defenses`")}
        attacks = _mapping(values.get("attacks"), "`attacks`")
        values["defenses"] = {
            name: _defense(name, _mapping(spec, f"defense {name}")) for name, spec in defenses.items()
        }
        values["attacks"] = {name: _attack(name, _mapping(spec, f"attack {name}")) for name, spec in attacks.items()}
        values["judge"] = parse_judge(values.get("judge", DEFAULT_JUDGE))
        values["judges"] = _judges(values.get("judges"), values["judge"])
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
        for name, spec in self.defenses.items():
            if spec.on is not None and spec.on not in self.defenses:
                raise unknown_name("defense in this study", spec.on, self.defenses)
            ancestors, base = {name}, spec.on
            while base is not None:
                if base in ancestors:
                    raise UserError(f"The defense {name!r} starts from itself: remove an `on`.")
                ancestors.add(base)
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
        """The resolved study in the file's form, every default spelled out; what is off (None) is left out."""
        values = self.model_dump(mode="json")
        values["defenses"] = {
            name: {"defense": d["defense"], **({"on": d["on"]} if d["on"] else {}), **_set(d["parameters"])}
            for name, d in values["defenses"].items()
        }
        values["judge"] = {"judge": values["judge"]["judge"], **values["judge"]["parameters"]}
        values["judges"] = {name: {"judge": j["judge"], **j["parameters"]} for name, j in values["judges"].items()}
        values["attacks"] = {
            name: {"attack": a["attack"], **({"search": a["search"]} if a["search"] else {}), **_set(a["parameters"])}
            for name, a in values["attacks"].items()
        }
        return dump_yaml(_set(values))


def resolve_study(study: Study) -> Study:
    """Replace presets by their values, so that every parameter that a result depends on is in the study.

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


def _mapping(value: Any, where: str) -> dict[str, Any]:
    """A mapping with names as keys; an empty one for nothing.

    Raises:
        UserError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{where} is {shown(repr(value))}: it must be a mapping, as in {{name: value}}.")
    return dict(value)


def _name(spec: dict[str, Any], key: str, default: str, where: str) -> str:
    """Remove a name from the specification of a defense or an attack.

    Raises:
        UserError: it is no string.
    """
    name = spec.pop(key, default)
    if not isinstance(name, str):
        raise UserError(f"{where}: {key} is {shown(repr(name))}: it must be a name (see `tamperfuse list`).")
    return name


def _defense(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    if set(spec) == {"defense", "on", "parameters"}:
        parameters = _mapping(spec["parameters"], f"defense {name}: `parameters`")
        spec = {"defense": spec["defense"], "on": spec["on"], **parameters}
    kind, on = _name(spec, "defense", name, f"defense {name}"), spec.pop("on", None)
    parsed = DEFENSES.get(kind).parse(spec, f"defense {name}")
    return {"defense": kind, "on": on, "parameters": parsed.model_dump(mode="json")}


def _attack(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    if {"attack", "parameters"} <= set(spec) <= {"attack", "parameters", "search"}:
        parameters = _mapping(spec.pop("parameters"), f"attack {name}: `parameters`")
        spec = {**spec, **parameters}
    kind, search_values = _name(spec, "attack", name, f"attack {name}"), spec.pop("search", None)
    component = ATTACKS.get(kind)
    parsed = component.parse(spec, f"attack {name}").model_dump(mode="json")
    if search_values is None:
        return {"attack": kind, "parameters": parsed}
    search = parse_search(search_values, component, spec, f"attack {name}")
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
        place, value = ".".join(str(part) for part in first["loc"]), first["input"]
        cause = "" if isinstance(value, dict) else f" is {shown(repr(value))}"
        reason = shown(first["msg"].removeprefix("Value error, "))
        raise UserError(
            f"{where}: {shown(place or 'the study')}{cause}, which cannot be used ({reason}): correct it there."
        ) from error


def _set(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters that have a value."""
    return {name: value for name, value in parameters.items() if value is not None}


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        UserError: it is missing, not YAML (the line is named), or not a valid study.
    """
    return parse_study(read_yaml(path), str(path))
