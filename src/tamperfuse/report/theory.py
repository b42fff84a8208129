"""The theory page: the theorems, a phase diagram with a slider for the attack's strength, counterexamples, consequences."""

from collections.abc import Sequence
from pathlib import Path

from tamperfuse.records.files import staged, write_json
from tamperfuse.report.figures import Figure
from tamperfuse.report.html import figure_record, render_page
from tamperfuse.report.theory_figures import theory_figures
from tamperfuse.theory.findings import known_counterexamples


def write_theory_page(out: Path, figures: Sequence[Figure] | None = None) -> Path:
    """Write `theory.html` and `theory.json` into `out`, which is created if missing.

    Args:
        out: the folder.
        figures: the result of `theory_figures()`; None to compute them, which takes about 15 seconds.

    Returns:
        The path of theory.html.

    Raises:
        UserError: `out` cannot be written.
    """
    with staged(out / "theory.html") as staging:  # first, so that an unwritable folder fails before the computation
        drawn = list(theory_figures() if figures is None else figures)
        counterexamples = known_counterexamples()
        contents = [
            ("result", "Result"),
            ("model", "The model"),
            ("theorems", "The two theorems"),
            *((figure.name, figure.title) for figure in drawn),
            ("counterexamples", "Counterexamples"),
            ("consequences", "Consequences"),
        ]
        html = render_page("theory.html.j2", drawn, contents, counterexamples=counterexamples)
        staging.write_text(html, encoding="utf-8")
        record = {"schema": 1, "figures": figure_record(drawn), "counterexamples": counterexamples}
        write_json(out / "theory.json", record)
    return out / "theory.html"
