"""The files of a run that the report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tamperfuse.records.errors import UserError
from tamperfuse.records.reading import path_exists, read_text
from tamperfuse.records.results import RESULTS, UNDEFENDED, read_results
from tamperfuse.records.run import STUDY, RunRecord, Samples, read_run, read_samples
from tamperfuse.records.searches import SearchResult, read_searches
from tamperfuse.records.summary import SUMMARY, Summary, read_summary
from tamperfuse.records.yaml import parse_yaml
from tamperfuse.report.trap_log import TrapLog, read_trap_logs


@dataclass(frozen=True)
class Run:
    """Everything the page is made of.

    Attributes:
        name: of the folder.
        study: the resolved study file, as text.
        rows: of results.parquet.
        summary: summary.json.
        samples: samples.json.
        record: run.json.
        searches: results of adaptive attackers; empty without any.
        traps: what defenses with simulated attackers measured during training; empty without any, or without the run's nodes.
    """

    name: str
    study: str
    rows: list[dict[str, Any]]
    summary: Summary
    samples: Samples
    record: RunRecord
    searches: list[SearchResult] = field(default_factory=list)
    traps: list[TrapLog] = field(default_factory=list)

    @cached_property
    def defense_settings(self) -> dict[str, dict[str, Any]]:
        """The component and parameters of each defense in the study file, by name; empty if they cannot be read from it."""
        return self._settings("defenses")

    @cached_property
    def attack_settings(self) -> dict[str, dict[str, Any]]:
        """As :attr:`defense_settings`, of each attack."""
        return self._settings("attacks")

    def _settings(self, section: str) -> dict[str, dict[str, Any]]:
        try:
            study = parse_yaml(self.study)
        except yaml.YAMLError:
            return {}
        components = study.get(section) if isinstance(study, dict) else None
        if not isinstance(components, dict):
            return {}
        return {str(name): settings for name, settings in components.items() if isinstance(settings, dict)}

    @cached_property
    def decided_rows(self) -> list[dict[str, Any]]:
        """The rows without those of further judges."""
        return [row for row in self.rows if row["judge"] in ("", self.summary.judge)]

    @cached_property
    def defenses(self) -> list[str]:
        """Names in the summary, the undefended model first."""
        return sorted(self.summary.defenses, key=lambda name: name != UNDEFENDED)

    @cached_property
    def attacks(self) -> list[str]:
        """Malicious attacks, in the order of the summary."""
        return self._names("after_attack")

    @cached_property
    def controls(self) -> list[str]:
        """Attacks that are not malicious (benign fine-tuning, export, …), in the order of the summary."""
        return self._names("after_control")

    @cached_property
    def too_weak(self) -> set[str]:
        """Malicious attacks that do not bring the undefended model to 80%, or diverge on it."""
        defenses = self.summary.defenses
        diverged = defenses[UNDEFENDED].diverged if UNDEFENDED in defenses else []
        weak = {name for one in defenses.values() for name in one.reduction_vs_undefended.too_weak}
        return weak | set(diverged).intersection(self.attacks)

    @cached_property
    def without_steps(self) -> set[str]:
        """Malicious attacks that train no steps, and have no attack cost; one that diverged has none either."""
        defenses = self.summary.defenses.values()
        diverged = {name for one in defenses for name in one.diverged}
        return {name for one in defenses for name, cost in one.attack_cost.items() if cost is None} - diverged

    def last_step(self, defense: str) -> int:
        """The step up to which every attack that counts for a defense and trains was evaluated; 0 if there is none."""
        counting = self.summary.defenses[defense].counting_costs()
        return min(
            (
                max((r["step"] for r in self.rows if r["attack"].partition("#")[0] == name), default=0)
                for name in counting
            ),
            default=0,
        )

    def _names(self, states: str) -> list[str]:
        harm = [self.summary.defenses[name].harmful_execution for name in self.defenses]
        return list(dict.fromkeys(name for one in harm for name in getattr(one, states)))


def read_folder(folder: Path) -> Run:
    """Read the files of a finished run.

    Raises:
        UserError: a file is missing or damaged.
    """
    summary = read_summary(folder)
    study = folder / STUDY
    if not path_exists(study):
        raise UserError(f"{folder} holds no {STUDY}: name the folder of a finished run.")
    text, rows = read_text(study), read_results(folder)
    _check_same_run(folder, summary, rows)
    return Run(
        name=folder.resolve().name,
        study=text,
        rows=rows,
        summary=summary,
        samples=read_samples(folder),
        record=read_run(folder),
        searches=read_searches(folder).searches,
        traps=read_trap_logs(folder, rows),
    )


def _check_same_run(folder: Path, summary: Summary, rows: Sequence[Mapping[str, Any]]) -> None:
    """Check that results.parquet has the models, seeds and attacks of summary.json: figures are made of one, words of the other.

    Raises:
        UserError: something is missing.
    """
    measured = {(row["defense"], row["attack"].partition("#")[0], row["seed"]) for row in rows}
    for name, defense in summary.defenses.items():
        after = [attack for attack, rate in defense.harmful_execution.after.items() if rate.value is not None]
        for attack in ("", *after):
            missing = [seed for seed in summary.seeds if (name, attack, seed) not in measured]
            if missing:
                state = f"after {attack}" if attack else "before any attack"
                raise UserError(
                    f"{folder / RESULTS} lacks what {SUMMARY} beside it has: {name} {state}, seed {missing[0]}. They are not of "
                    "one run: copy both files from the same folder, or repeat `tamperfuse run`."
                )
