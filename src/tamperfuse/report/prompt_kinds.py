"""The kinds of a threat's prompts ("recipe", "timing", …), and harmful execution by kind."""

from collections import defaultdict
from dataclasses import dataclass

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.sources import BUILTIN, raw_rows
from tamperfuse.records.errors import UserError
from tamperfuse.records.reading import local_path, path_exists
from tamperfuse.report.browser import PARTS
from tamperfuse.report.curves import chosen_steps
from tamperfuse.report.formatting import label, percent
from tamperfuse.report.inputs import Run
from tamperfuse.report.responses import JudgedAnswer
from tamperfuse.report.tables import EMPTY, Cell

KIND_COLUMNS = ("kind", "category")
BEFORE, AFTER = "before any attack", "after the attacks that work"


@dataclass(frozen=True)
class KindRow:
    """A kind of prompt, the number of its prompts, and a cell for each column."""

    name: str
    prompts: int
    cells: list[Cell]


@dataclass(frozen=True)
class Breakdown:
    """Executed requests by kind of prompt.

    Attributes:
        columns: each model before any attack and after the attacks that work, without those that have no answers.
        rows: one for each kind of prompt.
    """

    columns: list[str]
    rows: list[KindRow]


def prompt_kinds(source: str) -> dict[str, str]:
    """The kind of each prompt of a threat, by the prompt's text.

    Args:
        source: of the threat, as the study names it. Built-in threats and local files are read; data sets of the Hub are not,
            since building a page needs no network.

    Returns:
        Empty if there are no kinds, or the file is not there any more.
    """
    try:
        if source.startswith(BUILTIN):
            rows = list(builtin_rows(source.removeprefix(BUILTIN)))
        elif path_exists(local_path(source)):
            rows = [row for _, _, row in raw_rows(source)]
        else:
            return {}
    except UserError:
        return {}
    kinds = {}
    for row in rows:
        kind = next((row[name] for name in KIND_COLUMNS if isinstance(row.get(name), str) and row[name]), "")
        if kind and isinstance(row.get("prompt"), str):
            kinds[row["prompt"].strip()] = kind
    return kinds


def breakdown(run: Run, answers: list[JudgedAnswer], kinds: dict[str, str]) -> Breakdown | None:
    """Executed requests by kind of prompt; None if nothing is to be broken down.

    The cells are counts without intervals: several attacks answer the same prompts, and the groups are small. Searches are left
    out: their answers are those of trials.
    """
    counting = [name for name in run.attacks if name not in run.too_weak]
    steps = {(name, attack): chosen_steps(run, name, attack) for name in run.defenses for attack in counting}
    counts: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    prompts: dict[str, set[str]] = defaultdict(set)
    for answer in answers:
        state = answer.state
        if not answer.verdicts or state.defense not in run.defenses or answer.part == "attacker_dev":
            continue
        if "failure" in answer.verdicts[0].evidence:  # the judge could not decide
            continue
        kind = kinds.get(answer.prompt, "") if answer.part == "evaluation" else PARTS.get(answer.part, answer.part)
        is_chosen = state.step == steps.get((state.defense, state.attack), {}).get(state.seed)
        when = (AFTER if is_chosen else "") if state.attack else BEFORE
        if kind and when:
            counts[state.defense, when, kind].append(answer.verdicts[0].executed)
            prompts[kind].add(answer.prompt)
    if not prompts:
        return None
    measured = {(name, when) for name, when, _ in counts}
    shown = [(name, when) for name in run.defenses for when in (BEFORE, AFTER) if (name, when) in measured]
    rows = [
        KindRow(kind, len(prompts[kind]), [_count(counts.get((name, when, kind))) for name, when in shown])
        for kind in sorted(prompts, key=lambda kind: (kind in PARTS.values(), kind))
    ]
    return Breakdown([f"{label(name)}, {when}" for name, when in shown], rows)


def _count(executed: list[bool] | None) -> Cell:
    if not executed:
        return EMPTY
    return Cell(percent(sum(executed) / len(executed), 0), f"{sum(executed)} of {len(executed)}")
