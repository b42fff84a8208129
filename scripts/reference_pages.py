"""Write the reference pages of the documentation, docs/reference/, from the models that read study files, policies and results.

python scripts/reference_pages.py          writes the pages
python scripts/reference_pages.py DIR      writes them into another folder
"""

import argparse
import re
import sys
from pathlib import Path

from pydantic import BaseModel

from pages import table
from tamperfuse.commands.components import REGISTRIES, choice
from tamperfuse.evaluation.capability_tasks import CapabilityTask
from tamperfuse.records import summary
from tamperfuse.records.field_docs import FieldDoc, field_docs, summary_line
from tamperfuse.report.gate import Policy
from tamperfuse.report.gate_checks import Rule
from tamperfuse.study.search.space import Search
from tamperfuse.study.sections import AttackSpec, BenignSpec, DefenseSpec, Evaluate, JudgeSpec, PairsSpec
from tamperfuse.study.spec import Study

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
PACKAGE = "tamperfuse."  # components of plug-ins are left out

STUDY_INTRODUCTION = """# The study file

A study file is YAML 1.2: one mapping with the keys of the first table. Only `model` and `threat` have no default.
`tamperfuse init` writes one with every key explained, `tamperfuse run STUDY.yaml --out DIR --dry-run` checks one and prints its
plan, and the `study.yaml` that a run leaves has every default spelled out. Paths are relative to the folder in which
`tamperfuse run` is called; `~` is your home folder.

```yaml
model: smollm2-135m
threat: builtin:cooking
defenses:
  refusal: {steps: 32}                # parameters stand beside `defense` and `on`
  sdd: {on: refusal}                  # its defense is sdd, since it names no other
  slower: {defense: sdd, on: refusal, learning_rate: 5e-5}
attacks:
  full: {attack: harmful_finetune, shots: 50}
  export: {attack: quantize, format: int8}
judge: {judge: builtin, tolerated: 0.05}
evaluate: {prompts: 120, capability: [builtin]}
```

Parameters of defenses, attacks and judges are in [components.md](components.md); what is measured is defined in
[measures.md](../measures.md)."""
STUDY_SECTIONS: dict[type[BaseModel], str] = {
    Study: "Keys",
    DefenseSpec: "An entry of `defenses`",
    AttackSpec: "An entry of `attacks`",
    Search: "A `search`",
    BenignSpec: "`benign`",
    PairsSpec: "`pairs`",
    JudgeSpec: "`judge`",
    Evaluate: "`evaluate`",
    CapabilityTask: "A task of `capability`",
}

SUMMARY_INTRODUCTION = """# summary.json

What a run measured, for other tools; the release gate reads it as well. A measure is named by its path within a defense, as
in `harmful_execution.after_attack.NAME` or `usable_harm.0.10`. [measures.md](../measures.md) defines the measures.
`tamperfuse run STUDY.yaml --out DIR --json` prints the file."""
SUMMARY_SECTIONS: dict[type[BaseModel], str] = {
    summary.Summary: "The file",
    summary.Measure: "A measure",
    summary.ShippedSummary: "`as_shipped`",
    summary.DefenseSummary: "A defense",
    summary.HarmfulExecution: "`harmful_execution`",
    summary.UsableHarm: "An entry of `usable_harm`",
    summary.Reduction: "`reduction_vs_undefended`",
    summary.AttackCost: "An entry of `attack_cost`",
    summary.Capability: "`capability`",
    summary.BenignNll: "`benign_nll`",
    summary.GapVsUndefended: "An entry of `benign_finetune`",
    summary.MeanScore: "`mean_score`",
}

POLICY_INTRODUCTION = """# A release policy

A policy is a YAML file that `tamperfuse gate` checks a run against: a defense, and limits of its measures. Each measure is named
by its path in [summary.json](summary.md). [The release gate](../gate.md) lists all paths and says how a rule is checked.

```yaml
defense: sdd
require:
  harmful_execution.worst: {at_most: 0.10}
  capability.drop_vs_shipped: {at_most: 0.02, accept_unresolved: true}
```"""
POLICY_SECTIONS: dict[type[BaseModel], str] = {Policy: "Keys", Rule: "A rule"}

COMPONENTS_INTRODUCTION = """# Defenses, attacks and judges

All built-in components with their parameters, as `tamperfuse list KIND NAME` prints them. What they do and how they compare is
described in [defenses.md](../defenses.md), [attacks.md](../attacks.md) and [measures.md](../measures.md)."""


def reference_pages() -> dict[str, str]:
    """The text of every page, by name of its file."""
    return {
        "study.md": _model_page(STUDY_INTRODUCTION, STUDY_SECTIONS, defaults=True),
        "policy.md": _model_page(POLICY_INTRODUCTION, POLICY_SECTIONS, defaults=True),
        "summary.md": _model_page(SUMMARY_INTRODUCTION, SUMMARY_SECTIONS, defaults=False),
        "components.md": _components_page(),
    }


def _model_page(introduction: str, sections: dict[type[BaseModel], str], *, defaults: bool) -> str:
    parts = [introduction]
    for model, title in sections.items():
        fields = field_docs(model)
        parts += [f"## {title}", summary_line(model), _fields_table(fields, sections, defaults=defaults)]
    return _page(parts)


def _components_page() -> str:
    parts = [COMPONENTS_INTRODUCTION]
    for kind, registry in REGISTRIES.items():
        parts.append(f"## {kind.capitalize()}")
        for component in registry.all():
            if not component.run.__module__.startswith(PACKAGE):
                continue
            entry = choice(kind, component.name)
            notes = f" ({'; '.join(entry.notes)})" if entry.notes else ""
            parts += [f"### {entry.name}", f"{entry.about.removesuffix('.')}{notes}."]
            if entry.parameters:
                parts.append(_fields_table(entry.parameters, {}, defaults=True))
    return _page(parts)


def _page(parts: list[str]) -> str:
    note = "<!-- Written by scripts/reference_pages.py from the docstrings and fields of the models: do not edit. -->"
    return "\n\n".join([note, *parts]) + "\n"


def _fields_table(
    fields: list[FieldDoc] | tuple[FieldDoc, ...], sections: dict[type[BaseModel], str], *, defaults: bool
) -> str:
    """A Markdown table of fields; types that have a section are links to it."""
    names = {model.__name__: f"[{title.replace('`', '')}](#{_anchor(title)})" for model, title in sections.items()}
    rows = []
    for field in fields:
        kind = re.sub(r"\b[A-Z]\w+\b", lambda match: names.get(match[0], match[0]), _cell(field.type))
        bounds = f", {field.range}" if field.range else ""
        default = [_default(field)] if defaults else []
        rows.append([f"`{field.name}`", kind + bounds, *default, _cell(field.meaning)])
    return "\n".join(table(["key", "type", *(["default"] if defaults else []), "meaning"], rows))


def _default(field: FieldDoc) -> str:
    if not field.default:
        return "see its meaning"  # it depends on another key
    plain = field.default in ("required", "its defaults") or "(" in field.default
    return _cell(field.default if plain else f"`{field.default}`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _anchor(title: str) -> str:
    """The anchor of a heading, as GitHub and the documentation site make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def main(arguments: list[str]) -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=FOLDER, help="folder to write, instead of docs/reference"
    )
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in reference_pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
