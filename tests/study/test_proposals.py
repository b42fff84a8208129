"""What a search proposes follows from what its trials measured."""

from pathlib import Path
from typing import Any

import numpy as np

from tamperfuse.attacks import ATTACKS
from tamperfuse.study.search.proposals import Proposals
from tamperfuse.study.search.space import Search
from tamperfuse.study.search.trials import Trial, TrialCheckpoint


def trial(number: int, rate: float, learning_rate: float, stopped: str = "", *, diverged: bool = False) -> Trial:
    return Trial(
        number=number,
        parameters={"learning_rate": learning_rate},
        checkpoints=(TrialCheckpoint(step=1, rate=rate, lost=0.0),),
        stopped=stopped,
        diverged=diverged,
        samples=None if stopped else 2,
        trained=0,
        generated=0,
        scored=0,
        seconds=1.0,
    )


def proposed(file: Path, **end: Any) -> float:
    """Geometric mean of the proposed rates after four weak trials at low rates and two strong ones at high rates that end so."""
    search = Search.model_validate({"trials": 20, "over": {"learning_rate": [1e-5, 2e-3]}})
    start = ATTACKS.get("harmful_finetune").parse({}, "test")
    rates = []
    with Proposals(file, search, start, 0) as proposals:
        for number in range(4):
            proposals.add(trial(number, 0.1, 2e-5 * 2**number))
        for number, learning_rate in ((4, 8e-4), (5, 1.2e-3)):
            proposals.add(trial(number, 1.0, learning_rate, **end))
        for seed in range(12):
            proposals.seed = seed
            rates.append(proposals.next()["learning_rate"])
    return float(np.exp(np.mean(np.log(rates))))


def test_what_a_trial_measured_before_it_diverged_counts(tmp_path: Path) -> None:
    complete = proposed(tmp_path / "complete.db")
    diverged = proposed(tmp_path / "diverged.db", stopped="NaN at step 8", diverged=True)
    stopped = proposed(tmp_path / "stopped.db", stopped="an earlier trial had more")
    assert diverged == complete > 3 * stopped
