"""A run's progress in a few lines, which `tamperfuse status` prints and a terminal shows while the run goes on.

    nodes      done  running  left  time left
    data          6        0     0          –
    hardening     1        1     0      2 min
    measuring     2        0     1       50 s
    attacks       0        0     8     12 min
    judging       2        0     9      3 min
    all          11        1    18     18 min

The rows are those of :data:`ROWS`, and the data that all models share.
"""

from collections.abc import Mapping

from rich.table import Table

from tamperfuse.records.amounts import duration
from tamperfuse.records.errors import printable
from tamperfuse.study.status import KindStatus, NodeCounts, together

# Kinds of nodes by row: a study may have a dozen kinds, and a terminal 24 lines.
ROWS: Mapping[str, tuple[str, ...]] = {
    "hardening": ("defense",),
    "measuring": ("measure",),
    "attacks": ("attack", "search"),
    "judging": ("judge", "further judge"),
}
DATA = "data"  # all other kinds: answers, thresholds, pairs, benign samples


def status_table(counts: NodeCounts) -> Table:
    """Nodes that are finished, running and left, and the time left; a row for what a run does, and one for all of it."""
    table = Table("nodes", box=None, header_style="bold")
    for name in ("done", "running", "left", "time left"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, status in [*_by_row(counts.kinds).items(), ("all", counts.nodes)]:
        numbers = (str(number) for number in (status.done, status.running, status.left))
        table.add_row(name, *numbers, duration(status.seconds_left) if status.running or status.left else "–")
    return table


def _by_row(kinds: Mapping[str, KindStatus]) -> dict[str, KindStatus]:
    row_of = {kind: row for row, members in ROWS.items() for kind in members}
    rows = {row: [status for kind, status in kinds.items() if row_of.get(kind, DATA) == row] for row in (DATA, *ROWS)}
    return {row: together(statuses) for row, statuses in rows.items() if statuses}


def running_text(what: str, seconds: float) -> str:
    """A node that is being computed, and for how long it has been."""
    return f"Running for {duration(seconds)}: {printable(what)}"


def time_left_text(counts: NodeCounts) -> str:
    """The whole run's time left, and what the estimate is based on."""
    nodes = "1 finished node" if counts.timed == 1 else f"{counts.timed:,} finished nodes"
    basis = f", corrected by {nodes}" if counts.timed else "; no node was timed yet"
    return f"Whole run: about {duration(counts.nodes.seconds_left)} left (estimates{basis})."
