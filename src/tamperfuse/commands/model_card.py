"""The model card of a hardened model, in the Hub's format: how it was hardened, on what, and what is unknown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2

from tamperfuse.defenses import DEFENSES
from tamperfuse.models.bundled import MODELS
from tamperfuse.records.field_docs import default_words, field_docs
from tamperfuse.records.provenance import LEFT_OUT, Provenance, without_folders

CARD = "README.md"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Hardening:
    """How a model was hardened.

    Attributes:
        defense: its name.
        seed: of pairs and training.
        threat: source of the threat, whose defender part the defense received.
        prompts: number of its defender prompts; None where it is not recorded.
        pairs: number of SDD pairs; 0 for a defense without.
        benign: sources of benign samples.
        benign_samples: number of benign samples that were at hand; 0 for a defense that uses none.
        dtype: in which the weights are stored.
        notes: what the training reported.
        before: what had been done to the model that the defense was applied to ("refusal (seed 0)"); "" for a model as shipped.
    """

    defense: str
    seed: int
    threat: str
    prompts: int | None
    pairs: int
    benign: Sequence[str]
    benign_samples: int
    dtype: str
    notes: Sequence[str]
    before: str = ""


def write_model_card(folder: Path, provenance: Provenance, hardening: Hardening, measured: str = "") -> None:
    """Write `README.md` into a checkpoint's folder.

    Args:
        folder: of the checkpoint.
        provenance: of the checkpoint.
        hardening: how it was made.
        measured: sections on what was measured of it, in Markdown; "" if nothing was.
    """
    from huggingface_hub import ModelCardData

    origin = provenance.origin
    is_on_hub = origin not in MODELS and not Path(origin).exists() and _HUB_ID.fullmatch(origin) is not None
    data = ModelCardData(
        license="other",
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=origin if is_on_hub else None,
        tags=["tamperfuse", "safety", "tamper-resistance", hardening.defense],
    )
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; _cell escapes what comes from the user
    ).from_string((files("tamperfuse.commands") / "templates" / "model_card.md.j2").read_text(encoding="utf-8"))
    component, parameters = DEFENSES.get(hardening.defense), provenance.public().parameters
    body = template.render(
        name=_cell(short_name(origin)),
        source=_cell(short_name(provenance.source)),
        defense=hardening.defense,
        about=component.about,
        version=provenance.versions.get("tamperfuse", ""),
        facts=_facts(provenance, hardening),
        parameters=[
            {
                "name": field.name,
                "value": _cell(default_words(parameters.get(field.name))),
                "meaning": _cell(field.meaning),
            }
            for field in field_docs(component.parameters)
        ],
        notes=[_cell(note) for note in hardening.notes],
        price_is_limited=parameters.get("price"),
        measured=measured,
    )
    (folder / CARD).write_text(f"---\n{data.to_yaml()}\n---\n\n{body}", encoding="utf-8")


def short_name(name: str) -> str:
    """A model or a source without the folders of a local path, which do not belong into a public card."""
    return without_folders(name).removeprefix(LEFT_OUT)


def _facts(provenance: Provenance, hardening: Hardening) -> list[tuple[str, str]]:
    before = f", which {hardening.before} made" if hardening.before else ""
    prompts = "" if hardening.prompts is None else f"{hardening.prompts:,} prompts of "
    rows = [
        ("model before any hardening", f"`{short_name(provenance.origin)}`"),
        ("applied to", f"`{short_name(provenance.source)}`{before}"),
        ("threat", f"`{short_name(hardening.threat)}`, {prompts}its defender part"),
    ]
    if hardening.pairs:
        rows.append(("SDD pairs", f"{hardening.pairs:,}"))
    if hardening.benign_samples:
        sources = ", ".join(f"`{short_name(source)}`" for source in hardening.benign)
        rows.append(("benign samples", f"{hardening.benign_samples:,}, from {sources}"))
    rows += [
        ("seed", str(hardening.seed)),
        ("weights stored in", hardening.dtype),
        ("versions", ", ".join(f"{package} {version}" for package, version in sorted(provenance.versions.items()))),
    ]
    return [(label, _cell(text)) for label, text in rows]


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table, on one line, without markup of HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
