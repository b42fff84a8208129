"""The card of a data set of pairs, in the Hub's format: contents, sources, method, intended use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_card(path: Path, facts: dict[str, Any]) -> None:
    """Write README.md from the audit's facts.

    Args:
        path: the file.
        facts: as `audit.json` holds them.
    """
    from huggingface_hub import DatasetCardData

    options = facts["options"]
    data = DatasetCardData(
        language=options["language"] if options["language"] != "any" else None,
        license="other",
        task_categories=["text-generation"],
        size_categories=[_size(facts["pairs"])],
        pretty_name="SDD pairs",
        tags=["safety", "tamper-resistance", "self-degraded-defense"],
        configs=[{"config_name": "default", "data_files": "pairs.parquet"}],
    )
    path.write_text(f"---\n{data.to_yaml()}\n---\n\n{_body(facts)}", encoding="utf-8")


def _size(pairs: int) -> str:
    """The Hub's size class."""
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")]
    return next((name for bound, name in bounds if pairs < bound), "1M<n<10M")


def _cell(text: object) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(str(text).replace("|", "\\|").split())


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _body(facts: dict[str, Any]) -> str:
    sources = [
        (s["role"], s["source"], s["layout"], s["licence"], s["revision"] or "-", s["sha256"][:16] or "-")
        for s in facts["sources"]
    ]
    refused = [(f["name"], f["refused"]) for f in facts["filters"] if f["refused"]]
    similarity = facts["similarity"]
    return f"""# SDD pairs

{facts["pairs"]:,} rows for Self-Degraded Defense (arXiv 2507.21182): a harmful prompt with a fluent response that does not
answer it ({facts["sdd_pairs"]:,}), and benign prompts with their own answers ({facts["replay_pairs"]:,}). Trained on the
response only, a model learns to give harmful requests an irrelevant answer.

## How it was made

`tamperfuse pair`, version {facts["versions"]["tamperfuse"]}, seed {facts["seed"]}, match "{facts["match"]}".
Every pair's cosine under {facts["encoder"]} ({facts["dtype"]}) is at most {facts["threshold"]:g}; the mean is
{similarity["mean"]:.3f}, the highest {similarity["highest"]:.3f}. {facts["redraws"]:,} draws were repeated,
{facts["dropped"]:,} prompts were left out since no irrelevant response was found for them. `audit.html` and `audit.json` hold the
full account.

SHA-256 of `pairs.parquet`: `{facts["sha256"]}`

## Sources

{_table(("role", "source", "layout", "licence", "revision", "SHA-256"), sources)}

The licence of the data set follows from those of its sources; check them before you publish it.

## Drawn responses that the filters refused

{_table(("filter", "responses"), refused) if refused else "None, or no filter was on."}

## Categories of the prompts

{_table(("category", "pairs"), list(facts["categories"].items()))}

## Columns

`prompt`, `response` (refusal prefix included), `category`, `similarity` (cosine, NaN for replay), `prompt_origin`,
`response_origin`, `refusal_prefix`, `history` (earlier turns: user, assistant), `kind` (sdd or replay).

## Use

For hardening a model before its release. The prompts name harmful subjects; no row answers them. Training on the data set
does not by itself show that a model is protected: measure the model under attack.
"""
