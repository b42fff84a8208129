"""Generate the table of the demo in README.md from a finished run.

python scripts/demo_table.py studies/results/demo              prints the table
python scripts/demo_table.py studies/results/demo README.md    replaces the table in the page
"""

import sys
from pathlib import Path

from pages import print_or_replace, table
from tamperfuse.cli.summary_table import percent, summary_rows
from tamperfuse.records.summary import Measure, read_summary


def tables(folder: Path) -> str:
    """What the demo prints at its end, with the harmless prompts near the threat and the KL divergence.

    Raises:
        UserError: the folder is not that of a finished run.
    """
    summary = read_summary(folder)
    defenses = list(summary.defenses.values())
    rows = [[label.strip(), *cells] for label, cells in summary_rows(summary)]
    near = [percent(defense.benign_answer_rate_near) for defense in defenses]
    rows += [
        ["benign answer rate near the threat", percent(summary.as_shipped.benign_answer_rate_near), *near],
        ["KL from the model as shipped, nats a token", "0", *(nats(defense.benign_kl) for defense in defenses)],
    ]
    seeds = ", ".join(map(str, summary.seeds))
    minutes, gib = summary.seconds / 60, summary.peak_memory_bytes / 2**30
    notes = f"{summary.model}, {summary.threat}, seeds {seeds}; {minutes:.0f} minutes, {gib:.1f} GiB."
    return "\n".join([*table(["", "as shipped", *(f"`{name}`" for name in summary.defenses)], rows), "", notes])


def nats(measure: Measure) -> str:
    """A measure in nats with its interval and whether it is resolved."""
    if measure.value is None or measure.low is None or measure.high is None:
        return "–"
    text = f"{measure.value:z.3f} ({measure.low:z.3f} to {measure.high:z.3f})"
    return text if measure.resolved else f"{text}, not resolved"


def main(arguments: list[str]) -> None:
    """Print the table or write it into a page."""
    print_or_replace(arguments, "demo_table", __doc__ or "", tables)


if __name__ == "__main__":
    main(sys.argv[1:])
