"""Several runs side by side on one page: verdicts, harmful execution after every attack, headline measures, what differs."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tamperfuse.records.errors import UserError, printable
from tamperfuse.records.files import check_output_file, write_text
from tamperfuse.records.result_files import inputs_of
from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.run import STUDY, read_run
from tamperfuse.records.summary import NOT_MEASURED, DefenseSummary, Measure
from tamperfuse.records.yaml import read_yaml
from tamperfuse.report.answer import answer_of
from tamperfuse.report.figures import all_figures
from tamperfuse.report.formatting import DIVERGED, MISSING, label
from tamperfuse.report.gate_paths import worst_control
from tamperfuse.report.heatmap import GROUPS, HeatCell, HeatGroup, HeatRow, anchors_of, heatmap
from tamperfuse.report.html import render_page
from tamperfuse.report.inputs import Run, read_folder
from tamperfuse.report.page import FOLDED, write_report
from tamperfuse.report.tables import EMPTY, Cell, Kind, Section, TableRow, measure_cell

COMPARISON = "comparison.html"
NUMERICS_VERSION = "numerics version"
#: Settings that runs have to share for their numbers to be compared; those of defenses are what is compared.
COMPARABLE = (
    "model",
    "chat_template",
    "threat",
    "retain",
    "judge",
    "evaluate",
    "attacks",
    NUMERICS_VERSION,
    "precision",
)
_ABSENT = "–"


@dataclass(frozen=True)
class HeadlineMeasure:
    """A row of the table.

    Attributes:
        section: its heading.
        name: its name.
        note: a remark.
        kind: how it is printed.
        of: where the summary has it.
        of_attacks: whether it rests on attacks or controls, and so says nothing of a defense on which one of them diverged.
    """

    section: str
    name: str
    note: str
    kind: Kind
    of: Callable[[DefenseSummary], Measure]
    of_attacks: bool = False


HARM, PRICE = "Harmful execution", "Price, before any attack"
HEADLINE_MEASURES = (
    HeadlineMeasure(HARM, "before any attack", "lower is better", "rate", lambda d: d.harmful_execution.before_attack),
    HeadlineMeasure(
        HARM, "mean over malicious attacks", "lower is better", "rate", lambda d: d.harmful_execution.mean, True
    ),
    HeadlineMeasure(
        HARM, "worst malicious attack", "lower is better", "rate", lambda d: d.harmful_execution.worst, True
    ),
    HeadlineMeasure(HARM, "worst control", "lower is better", "rate", worst_control, True),
    HeadlineMeasure(
        HARM,
        "reduction vs undefended, pooled",
        "over the attacks that count in that run; higher is better",
        "difference",
        lambda d: d.reduction_vs_undefended.pooled,
        of_attacks=True,
    ),
    HeadlineMeasure(
        HARM,
        "usable harm at 5% loss of capability",
        "lower is better",
        "rate",
        lambda d: d.usable_harm.get("0.05") or NOT_MEASURED,
        of_attacks=True,
    ),
    HeadlineMeasure(PRICE, "benign answer rate", "higher is better", "rate", lambda d: d.benign_answer_rate),
    HeadlineMeasure(
        PRICE,
        "its drop vs as shipped",
        "in points; lower is better",
        "difference",
        lambda d: d.benign_answer_drop_vs_shipped,
    ),
    HeadlineMeasure(
        PRICE,
        "drop of capability vs as shipped",
        "lower is better",
        "difference",
        lambda d: d.capability.drop_vs_shipped,
    ),
    HeadlineMeasure(
        PRICE,
        "rise of NLL vs as shipped",
        "nats per token; lower is better",
        "nats difference",
        lambda d: d.benign_nll.rise_vs_shipped,
    ),
)


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write the page that sets runs side by side, and the page of each run, which it links to.

    Args:
        folders: of at least two finished runs.
        out: the file to write.

    Returns:
        `out`.

    Raises:
        UserError: a run is named twice, a file of a run is missing or damaged, or a file cannot be written or is one of a run.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("A run is named twice: name each folder once.")
    check_output_file(out, [path for folder in folders for path in inputs_of(folder)])
    runs = [replace(read_folder(folder), name=name) for folder, name in zip(folders, _names(folders), strict=True)]
    pages = [_address(write_report(folder), out) for folder in folders]
    columns = [(number, name) for number, run in enumerate(runs) for name in run.defenses]
    differences = _differences(folders)
    html = render_page(
        "comparison.html.j2",
        [],
        contents=[("result", "Result"), ("measures", "Headline measures"), ("differences", "What differs")],
        runs=list(zip(runs, pages, strict=True)),
        answers=[
            (run.name, answer_of(run.summary, name)) for run in runs for name in run.defenses if name != UNDEFENDED
        ],
        heat=_heat(runs, pages),
        columns=[f"{label(name)}, {printable(runs[number].name)}" for number, name in columns],
        sections=_sections(runs, columns),
        differences=differences,
        incomparable=[key for key in COMPARABLE if any(path.split(".")[0] == key for path, _ in differences)],
    )
    write_text(out, html)
    return out


def _names(folders: Sequence[Path]) -> list[str]:
    """The names of the folders; with the folder above where two have the same name."""
    resolved = [folder.resolve() for folder in folders]
    count = Counter(folder.name for folder in resolved)
    return [folder.name if count[folder.name] == 1 else f"{folder.parent.name}/{folder.name}" for folder in resolved]


def _address(page: Path, out: Path) -> str:
    return quote(Path(os.path.relpath(page.resolve(), out.resolve().parent)).as_posix())


def _heat(runs: Sequence[Run], pages: Sequence[str]) -> list[HeatGroup]:
    """The heatmaps of all runs as one, with cells that lead to the curves on the runs' pages."""
    groups: dict[str, dict[str, dict[int, list[HeatCell]]]] = {title: {} for title in GROUPS}
    for number, (run, page) in enumerate(zip(runs, pages, strict=True)):
        folded = [figure for figure in all_figures(run) if figure.name in FOLDED]
        anchors = anchors_of([panel.heading for figure in folded for panel in figure.panels])
        for group in heatmap(run, anchors):
            for row in group.rows:
                cells = [replace(cell, anchor=page + cell.anchor) for cell in row.cells]
                groups[group.title].setdefault(row.name, {})[number] = cells

    def absent(name: str, number: int) -> HeatCell:
        """The cell of an attack that a run has under another heading, or not at all."""
        elsewhere = [title for title, rows in groups.items() if number in rows.get(name, {})]
        return HeatCell(
            MISSING, None, f"in this run under: {elsewhere[0]}" if elsewhere else "not part of this run", ""
        )

    return [
        HeatGroup(
            title,
            [
                HeatRow(
                    name,
                    [
                        cell
                        for i, run in enumerate(runs)
                        for cell in cells.get(i, [absent(name, i)] * len(run.defenses))
                    ],
                )
                for name, cells in rows.items()
            ],
        )
        for title, rows in groups.items()
        if rows
    ]


def _sections(runs: Sequence[Run], columns: Sequence[tuple[int, str]]) -> list[Section]:
    rows: dict[str, list[TableRow]] = {}
    for measure in HEADLINE_MEASURES:
        cells = []
        for number, name in columns:
            defense = runs[number].summary.defenses[name]
            if name == UNDEFENDED and measure.name.startswith("reduction"):
                cells.append(EMPTY)
            elif measure.of_attacks and defense.diverged:
                cells.append(Cell(DIVERGED, ", ".join(map(printable, defense.diverged)), muted=True))
            else:
                cells.append(measure_cell(measure.of(defense), measure.kind))
        rows.setdefault(measure.section, []).append(TableRow(measure.name, cells, measure.note))
    return [Section(title, section) for title, section in rows.items()]


def _differences(folders: Sequence[Path]) -> list[tuple[str, list[str]]]:
    """Settings of the studies that are not the same in all runs: the path of each, and its value in every run.

    So are the version of the computations, and their precision.
    """
    studies = []
    for folder in folders:
        run = read_run(folder)
        computed = {
            NUMERICS_VERSION: str(run.numerics or "unknown"),
            "precision": printable(run.precision.partition(":")[0]),
        }
        studies.append(dict(_settings(read_yaml(folder / STUDY))) | computed)
    paths = list(dict.fromkeys(path for study in studies for path in study))
    values = [(path, [study.get(path, _ABSENT) for study in studies]) for path in paths]
    return [(path, row) for path, row in values if len(set(row)) > 1]


def _settings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _settings(part, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, printable(str(value))
