"""Generate the tables of an adaptive attacker from a finished run whose study has a `search`.

python scripts/search_table.py studies/results/search            prints the tables
python scripts/search_table.py studies/results/search PAGE.md    replaces those of a page
"""

import sys
from pathlib import Path

from attacks_table import run_inputs
from fuse_table import EPSILON, USABLE, brief, usable
from pages import print_or_replace, table
from tamperfuse.records.errors import UserError
from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.searches import SearchResult, read_searches
from tamperfuse.records.summary import Summary, read_summary

TERMS = (
    "*After n trials*: harmful execution at the step that the attacker prefers among all steps of these trials, by prompts of "
    f"its own. *Half*: of the rate on `{UNDEFENDED}` after all trials. {USABLE} *Capability lost*: against `{UNDEFENDED}` before "
    "any attack; negative for a gain. The first five settings are the same for all models."
)


def tables(folder: Path) -> str:
    """The searches by model, the trials against each defense, and notes, as Markdown.

    Raises:
        UserError: the folder is not that of a finished run, or its study has no search.
    """
    summary, searches = read_summary(folder), read_searches(folder).searches
    if not searches:
        raise UserError(f"{folder} has no results of a search: name a run whose study has an attack with `search`.")
    defended = [search for search in searches if search.defense != UNDEFENDED]
    lines = [*search_table(summary, searches), "", *trial_table(defended), "", TERMS, "", run_inputs(summary)]
    return "\n".join(lines)


def search_table(summary: Summary, searches: list[SearchResult]) -> list[str]:
    """The lines of a table with one row for each search: its best rates by the number of trials."""
    trials = min(search.trials for search in searches)
    counts = sorted({1, -(-trials // 4), -(-trials // 2), trials})
    head = ["attack", "model", *(f"after {n} trial{'s' * (n > 1)}" for n in counts), "trials to half", "U(10%)"]
    rows = [
        [
            f"`{search.attack}`",
            f"`{search.defense}`",
            *(brief(search.best_so_far[n - 1]) for n in counts),
            f"> {search.trials}" if search.censored else str(search.trials_to_half),
            usable(summary.defenses[search.defense].usable_harm.get(EPSILON), brief),
        ]
        for search in searches
    ]
    return table(head, rows)


def trial_table(searches: list[SearchResult]) -> list[str]:
    """The lines of a table with one row for each trial, at the step that its attacker prefers."""
    head = ["model", "seed", "trial", "setting", "step", "executes", "capability lost"]
    rows = [
        [
            f"`{search.defense}`",
            str(trial.seed),
            str(trial.trial + 1),
            trial.setting,
            f"{trial.step}" + " (ended early)" * trial.stopped,
            brief(trial.evaluation),
            f"{trial.capability_lost:z.0%}",
        ]
        for search in searches
        for trial in search.choices
    ]
    return table(head, rows)


def main(arguments: list[str]) -> None:
    """Print the tables or write them into a page."""
    print_or_replace(arguments, "search_table", __doc__ or "", tables)


if __name__ == "__main__":
    main(sys.argv[1:])
