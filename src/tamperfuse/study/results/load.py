"""All that a study measured, looked up by defense and attack; the attacker's choice stands for a search."""

from collections.abc import Sequence
from dataclasses import dataclass

from tamperfuse.records.results import UNDEFENDED
from tamperfuse.study.node import Finished
from tamperfuse.study.results.frontier import Found, checkpoints, chosen_trial
from tamperfuse.study.results.rows import Observed, gather
from tamperfuse.study.spec import Study


@dataclass(frozen=True)
class States:
    """All model states of a study.

    Attributes:
        study: the study.
        observed: one state a defense, attack and seed; of a search the trial that the attacker chose.
        searched: what each search found, trial by trial.
    """

    study: Study
    observed: list[Observed]
    searched: list[Found]

    @classmethod
    def of_run(cls, study: Study, finished: Sequence[Finished]) -> "States":
        """Read what finished nodes left behind."""
        read = gather(finished)
        plain = cls(study, [state for state in read if state.trial < 0], [])
        found: dict[tuple[str, str, int], list[Observed]] = {}
        for state in read:
            if state.trial >= 0:
                found.setdefault((state.defense, state.attack, state.seed), []).append(state)
        searched = [plain._found(*key, trials) for key, trials in found.items()]
        return cls(study, [*plain.observed, *(chosen_trial(each.points) for each in searched)], searched)

    def _found(self, defense: str, attack: str, seed: int, trials: list[Observed]) -> Found:
        undefended, before = (
            next(state for state in self.of(name) if state.seed == seed) for name in (UNDEFENDED, defense)
        )
        start, points = (checkpoints(states, self.shipped, undefended) for states in ([before], trials))
        return Found(defense, attack, seed, start[0], trials, points)

    def of(self, defense: str, attack: str = "") -> list[Observed]:
        """One state a seed, in the order of the seeds."""
        return sorted((o for o in self.observed if (o.defense, o.attack) == (defense, attack)), key=lambda o: o.seed)

    def found(self, defense: str, attack: str) -> list[Found]:
        """What a search found, one a seed, in the order of the seeds; empty where the attack is none."""
        return sorted((f for f in self.searched if (f.defense, f.attack) == (defense, attack)), key=lambda f: f.seed)

    def everything(self) -> list[Observed]:
        """Every state and every trial; the trial that was chosen is there as both."""
        return [*self.observed, *(trial for found in self.searched for trial in found.trials)]

    def trials_of(self, defense: str, attack: str) -> list[Observed]:
        """All trials of a search, with every seed; empty where the attack is none."""
        return [trial for found in self.found(defense, attack) for trial in found.trials]

    @property
    def shipped(self) -> Observed:
        """The model as shipped."""
        return next(o for o in self.observed if o.attack == "" and o.defense not in self.study.defenses)

    def attacks(self, malicious: bool) -> list[str]:
        """Names of the attacks of that kind, in the study's order."""
        kinds = {o.attack: o.malicious for o in self.observed if o.attack}
        return [name for name in self.study.attacks if name in kinds and kinds[name] == malicious]

    def searches(self) -> list[str]:
        """Names of the attacks that are searches, in the study's order."""
        return [name for name, attack in self.study.attacks.items() if attack.search]
