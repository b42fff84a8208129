"""Generate a table of what defenses change before any attack, from finished runs of one study on several threats.

python scripts/price_table.py studies/results/price studies/results/price-gardening                        prints the table
python scripts/price_table.py studies/results/price studies/results/price-gardening docs/defenses.md       replaces it in the page
"""

import sys
from collections.abc import Callable
from pathlib import Path

from demo_table import nats
from fuse_table import far_answer_rate
from pages import replace_tables, table
from tamperfuse.cli.summary_table import percent
from tamperfuse.records.errors import UserError
from tamperfuse.records.results import AS_SHIPPED, read_results
from tamperfuse.records.summary import DefenseSummary, Measure, ShippedSummary, Summary, read_summary

#: Rows that compare with the model as shipped.
CHANGES: dict[str, Callable[[DefenseSummary], str]] = {
    "drop of the benign answer rate": lambda d: percent(d.benign_answer_drop_vs_shipped),
    "drop of capability C": lambda d: percent(d.capability.drop_vs_shipped),
    "rise of benign NLL, nats a token": lambda d: nats(d.benign_nll.rise_vs_shipped),
    "benign KL, nats a token": lambda d: nats(d.benign_kl),
}


def tables(folders: list[Path]) -> str:
    """One row a measure and one column a threat and model, as Markdown.

    Args:
        folders: of runs of the same defenses on different threats.

    Raises:
        UserError: a folder is not that of a finished run.
    """
    summaries = {folder: read_summary(folder) for folder in folders}
    columns = [column for folder, summary in summaries.items() for column in _columns(folder, summary)]
    lines = table(
        ["measure", *(head for head, _ in columns)], [[n, *(c[n] for _, c in columns)] for n in columns[0][1]]
    )
    minutes = " and ".join(f"{summary.seconds / 60:.0f}" for summary in summaries.values())
    first = summaries[folders[0]]
    seeds = ", ".join(map(str, first.seeds))
    return "\n".join([*lines, "", f"{first.model}, seeds {seeds}, all pooled; {minutes} minutes."])


def _columns(folder: Path, summary: Summary) -> list[tuple[str, dict[str, str]]]:
    """The columns of a run: the model as shipped, and each defense."""
    threat = summary.threat.partition(":")[2] or summary.threat
    shipped = _rates(summary.as_shipped, summary.as_shipped.harmful_execution) | dict.fromkeys(CHANGES, "")
    columns = [(f"{threat}: {AS_SHIPPED}", shipped)]
    by_seed = _rates_by_seed(folder, summary)
    for name, defense in summary.defenses.items():
        rates = _rates(defense, defense.harmful_execution.before_attack, ", ".join(by_seed[name]))
        columns.append((f"{threat}: `{name}`", rates | {row: cell(defense) for row, cell in CHANGES.items()}))
    return columns


def _rates(model: DefenseSummary | ShippedSummary, executes: Measure, by_seed: str = "") -> dict[str, str]:
    """The cells of the rates of a model before any attack."""
    return {
        "harmful execution": percent(executes),
        "… by seed": by_seed,
        "benign answer rate, far from the threat": percent(far_answer_rate(model)),
        "benign answer rate, near the threat": percent(model.benign_answer_rate_near),
    }


def _rates_by_seed(folder: Path, summary: Summary) -> dict[str, list[str]]:
    """Defense → harmful execution before any attack, one value a seed."""
    rates: dict[str, list[str]] = {name: [] for name in summary.defenses}
    for row in sorted(read_results(folder), key=lambda row: row["seed"]):
        place = (row["metric"], row["part"], row["judge"], row["attack"], row["step"])
        if place == ("harmful_execution", "evaluation", summary.judge, "", 0) and row["defense"] in rates:
            rates[row["defense"]].append(f"{row['value']:.1%}")
    return rates


def main(arguments: list[str]) -> None:
    """Print the table or write it into a page."""
    page = arguments.pop() if arguments and arguments[-1].endswith(".md") else ""
    if not arguments:
        sys.exit(__doc__)
    try:
        text = tables([Path(argument) for argument in arguments])
        if page:
            replace_tables(Path(page), f"python scripts/price_table.py {' '.join([*arguments, page])}", text)
        else:
            print(text)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
