"""A run's folder, read once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tamperfuse.records.errors import UserError
from tamperfuse.records.results import UNDEFENDED, Summary, read_results, read_summary
from tamperfuse.records.run import RunRecord, Samples, read_run, read_samples
from tamperfuse.records.searches import Climb, read_searches

STUDY = "study.yaml"


@dataclass(frozen=True)
class Run:
    """Everything the page is made of.

    Attributes:
        name: of the folder.
        study: the resolved study file, as text.
        rows: of results.parquet.
        searches: what adaptive attackers found; empty without any.
    """

    name: str
    study: str
    rows: list[dict[str, Any]]
    summary: Summary
    samples: Samples
    record: RunRecord
    searches: list[Climb] = field(default_factory=list)

    @property
    def defenses(self) -> list[str]:
        """Names in the summary, the undefended rival first."""
        return sorted(self.summary.defenses, key=lambda name: name != UNDEFENDED)

    @property
    def attacks(self) -> list[str]:
        """Malicious attacks, in the order of the summary."""
        malicious = {row["attack"] for row in self.rows if row["attack"] and row["malicious"]}
        return [name for name in self._after_attack() if name in malicious]

    @property
    def benign_attacks(self) -> list[str]:
        """Benign fine-tunings, by name."""
        return sorted({row["attack"] for row in self.rows if row["attack"] and not row["malicious"]})

    @property
    def last_step(self) -> int:
        """The last step at which a malicious attack was looked at."""
        return max((row["step"] for row in self.rows if row["malicious"]), default=0)

    def _after_attack(self) -> list[str]:
        names: dict[str, None] = {}
        for name in self.defenses:
            names.update(dict.fromkeys(self.summary.defenses[name].harmful_execution.after_attack))
        return list(names)


def read_folder(folder: Path) -> Run:
    """Read what a finished run left behind.

    Raises:
        UserError: a file is missing or damaged.
    """
    summary = read_summary(folder)
    study = folder / STUDY
    try:
        text = study.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no {STUDY}: name the folder of a finished run.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{study} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    return Run(
        name=folder.resolve().name,
        study=text,
        rows=read_results(folder),
        summary=summary,
        samples=read_samples(folder),
        record=read_run(folder),
        searches=read_searches(folder).searches,
    )
