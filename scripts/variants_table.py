"""Generate a table of variants of a defense, one row each, from a finished run.

python scripts/variants_table.py studies/results/strength                  prints the table
python scripts/variants_table.py studies/results/strength docs/fuse.md     replaces the table of this run in the page
"""

import sys
from pathlib import Path

from attacks_table import percent, run_inputs
from demo_table import nats
from pages import print_or_replace, table
from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.summary import DefenseSummary, Measure, read_summary


def tables(folder: Path) -> str:
    """One row a defense: rates after each attack, effect, and price, as Markdown.

    Raises:
        UserError: the folder is not that of a finished run.
    """
    summary = read_summary(folder)
    attacks = list(next(iter(summary.defenses.values())).harmful_execution.after_attack)
    shipped = summary.as_shipped
    rows = [["as shipped", *("" for _ in attacks), "", "", "", percent(shipped.benign_answer_rate), ""]]
    rows += [[f"`{name}`", *_cells(name, defense, attacks)] for name, defense in summary.defenses.items()]
    head = [
        "",
        *(f"executes after `{attack}`" for attack in attacks),
        "reduction, pooled",
        "benign NLL, its rise",
        "benign KL",
        "harmless prompts answered",
        "self-degradation",
    ]
    return "\n".join([*table(head, rows), "", f"NLL and KL in nats a token. {run_inputs(summary)}"])


def _cells(name: str, defense: DefenseSummary, attacks: list[str]) -> list[str]:
    def compared(measure: Measure) -> str:
        return "" if name == UNDEFENDED else resolved(measure)

    return [
        *(percent(defense.harmful_execution.after_attack[attack]) for attack in attacks),
        compared(defense.reduction_vs_undefended.pooled),
        nats(defense.benign_nll.rise_vs_shipped),
        nats(defense.benign_kl),
        percent(defense.benign_answer_rate),
        compared(defense.capability.self_degradation),
    ]


def resolved(measure: Measure) -> str:
    """A measure with its interval in whole percent, and whether it is resolved."""
    return percent(measure) if measure.resolved else f"{percent(measure)}, not resolved"


def main(arguments: list[str]) -> None:
    """Print the table or write it into a page."""
    print_or_replace(arguments, "variants_table", __doc__ or "", tables)


if __name__ == "__main__":
    main(sys.argv[1:])
