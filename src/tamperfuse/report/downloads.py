"""Downloads of the page: the results as CSV and JSON, and a citation."""

import base64
import csv
import hashlib
import io
import re
from typing import Any

from tamperfuse.records.errors import printable
from tamperfuse.records.results import COLUMNS
from tamperfuse.report.inputs import Run

_FORMULA = ("=", "+", "-", "@", "\t")  # a spreadsheet runs a text that begins so
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "{}$&#_%"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
)


def csv_text(rows: list[dict[str, Any]]) -> str:
    """The rows of results.parquet as CSV; a text that a spreadsheet would run as a formula is preceded by an apostrophe."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS.names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(row[name]) for name in COLUMNS.names})
    return stream.getvalue()


def data_uri(media_type: str, text: str) -> str:
    """A text as the address of a download, which needs neither a server nor a script."""
    return f"data:{media_type};base64,{base64.b64encode(text.encode()).decode()}"


def citation(run: Run, started: str) -> str:
    """How to cite the results: a sentence, and a BibTeX entry.

    Args:
        run: the run.
        started: its date, for people.
    """
    version = run.record.versions.get("tamperfuse", "")
    seeds = ", ".join(map(str, run.summary.seeds))
    digest = hashlib.sha256(run.study.encode()).hexdigest()[:16]
    about = (
        f"model {run.summary.model}, threat {run.summary.threat}, judge {run.summary.judge}, seeds {seeds}, study file SHA-256 "
        f"{digest}"
    )
    year = re.search(r"\b(\d{4})\b", run.record.started)
    entry = [
        "@misc{tamperfuse-" + re.sub(r"[^A-Za-z0-9-]+", "-", run.name) + ",",
        f"  title = {{tamperfuse report: {_bibtex(run.name)}}},",
        "  author = {{tamperfuse contributors}},",
        *([f"  year = {{{year[1]}}},"] if year else []),
        f"  note = {{tamperfuse {_bibtex(version)}; {_bibtex(about)}}},",
        "}",
    ]
    return f"tamperfuse {version}, report “{run.name}”, {started}: {about}.\n\n" + "\n".join(entry)


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _bibtex(text: str) -> str:
    return text.translate(_LATEX)
