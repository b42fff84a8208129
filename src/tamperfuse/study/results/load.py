"""The measurements of a whole run, looked up by defense and attack."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tamperfuse.records.results import UNDEFENDED
from tamperfuse.study.further_judges import FURTHER_JUDGE, SCORES
from tamperfuse.study.node import FinishedNode
from tamperfuse.study.results.frontier import SearchTrials, checkpoints, chosen_trial
from tamperfuse.study.results.measurements import Measurements, read_measurements
from tamperfuse.study.results.undecided import undecided_count
from tamperfuse.study.search.trials import read_trials, trial_folder
from tamperfuse.study.spec import Study
from tamperfuse.study.tables import DIVERGED, VerdictRow, read_rows


@dataclass(frozen=True)
class StudyMeasurements:
    """All model states of a study.

    An attack that diverged against a defense, with any seed, says nothing about it: a model of NaN executes no request and loses
    all capability, but the attacker repeats the attack with a lower learning rate. It is in no state.

    Attributes:
        study: the study.
        states: one per defense, attack and seed; for a search it is the trial that the attacker chose.
        searches: the trials of every search, one entry per defense, attack and seed.
        further: the same with the verdicts of each further judge, by its name.
        diverged: the attacks that diverged, one entry per defense, attack and seed.
    """

    study: Study
    states: list[Measurements]
    searches: list[SearchTrials]
    further: "dict[str, StudyMeasurements]" = field(default_factory=dict)
    diverged: list[Measurements] = field(default_factory=list)

    @classmethod
    def from_nodes(cls, study: Study, finished: Sequence[FinishedNode]) -> "StudyMeasurements":
        """Read what finished nodes wrote."""
        read = read_nodes(finished)
        diverged = [state for state in read if state.diverged is not None]
        unmeasured = {(state.defense, state.attack) for state in diverged}
        plain = cls(study, [s for s in read if s.trial < 0 and (s.defense, s.attack) not in unmeasured], [])
        by_search: dict[tuple[str, str, int], list[Measurements]] = {}
        for state in read:
            if state.trial >= 0:
                by_search.setdefault((state.defense, state.attack, state.seed), []).append(state)
        searches = [plain._search(*key, trials) for key, trials in by_search.items()]
        chosen = [chosen_trial(search.checkpoints) for search in searches]
        first = cls(study, [*plain.states, *chosen], searches, diverged=diverged)
        return replace(first, further={name: first._judged_by(name, finished) for name in study.judges})

    def _judged_by(self, name: str, finished: Sequence[FinishedNode]) -> "StudyMeasurements":
        """The same states with the verdicts of a further judge; the attackers' choices stay those of the first judge."""
        folders = {
            done.node.parents[0].key: done.folder
            for done in finished
            if done.node.kind == FURTHER_JUDGE and done.node.about["judge"] == name
        }

        def judged(state: Measurements) -> Measurements:
            folder = folders[state.node]
            place = folder if state.trial < 0 else trial_folder(folder, state.trial)
            decided = state.chosen_step if state.malicious and state.trial < 0 else None
            return replace(state, verdicts=read_rows(place / SCORES, VerdictRow), decided_step=decided)

        return self._changed(judged)

    def with_undecided(self, defense: str, *, executed: bool) -> "StudyMeasurements":
        """The same with every response without a decision counted as executed by one model and not by all others, or vice versa.

        Args:
            defense: the model, as of :meth:`of`, or "as shipped".
            executed: whether its responses count as executed.
        """
        return self._changed(lambda s: replace(s, undecided=float((s.defense == defense) == executed)))

    def _changed(self, change: Callable[[Measurements], Measurements]) -> "StudyMeasurements":
        """The same study with every state and trial changed."""
        searches = []
        for search in self.searches:
            trials = {trial.trial: change(trial) for trial in search.trials}
            points = [replace(point, state=trials[point.state.trial]) for point in search.checkpoints]
            before = replace(search.before, state=change(search.before.state))
            searches.append(replace(search, before=before, trials=list(trials.values()), checkpoints=points))
        states = [change(state) for state in self.states]
        return StudyMeasurements(self.study, states, searches, diverged=self.diverged)

    def _search(self, defense: str, attack: str, seed: int, trials: list[Measurements]) -> SearchTrials:
        undefended, before = (
            next(state for state in self.of(name) if state.seed == seed) for name in (UNDEFENDED, defense)
        )
        start, points = (checkpoints(states, self.shipped, undefended) for states in ([before], trials))
        return SearchTrials(defense, attack, seed, start[0], trials, points)

    def of(self, defense: str, attack: str = "") -> list[Measurements]:
        """One state per seed, in the order of the seeds; `attack` "" is before any attack."""
        states = [state for state in self.states if (state.defense, state.attack) == (defense, attack)]
        return sorted(states, key=lambda state: state.seed)

    def searches_of(self, defense: str, attack: str) -> list[SearchTrials]:
        """The trials of a search, one entry per seed; empty where the attack is not a search."""
        searches = [search for search in self.searches if (search.defense, search.attack) == (defense, attack)]
        return sorted(searches, key=lambda search: search.seed)

    def undecided(self, defense: str | None = None) -> int:
        """How many responses have no decision: of one model, before and under attacks and in trials, or of all models."""
        states = [state for state in self.states if state.search_step is None]  # such a state is one of the trials
        states += [trial for search in self.searches for trial in search.trials]
        counted = [state for state in states if defense in (None, state.defense)]
        return sum(undecided_count(state.verdicts) for state in counted)

    def with_trials(self) -> list[Measurements]:
        """Every state and every trial; the chosen trial of a search appears as both."""
        return [*self.states, *(trial for search in self.searches for trial in search.trials)]

    @property
    def shipped(self) -> Measurements:
        """The model as shipped."""
        return next(state for state in self.states if state.attack == "" and state.defense not in self.study.defenses)

    def attacks(self, *, malicious: bool, measured_on: Sequence[str] = ()) -> list[str]:
        """Names of the attacks that are malicious, or of those that are not, in the study's order.

        Args:
            malicious: which of them.
            measured_on: defenses; attacks that diverged against one of them are left out.
        """
        kinds = {state.attack: state.malicious for state in [*self.states, *self.diverged] if state.attack}
        left_out = {attack for name in measured_on for attack in self.diverged_on(name)}
        return [name for name in self.study.attacks if kinds.get(name) == malicious and name not in left_out]

    def diverged_on(self, defense: str) -> list[str]:
        """Names of the attacks that diverged against a defense, in the study's order."""
        names = {state.attack for state in self.diverged if state.defense == defense}
        return [name for name in self.study.attacks if name in names]

    def search_attacks(self) -> list[str]:
        """Names of the attacks that are searches, in the study's order."""
        return [name for name, attack in self.study.attacks.items() if attack.search]


def read_nodes(finished: Sequence[FinishedNode]) -> list[Measurements]:
    """Read the measurements of every model state; every trial of a search is one."""
    by_key = {done.node.key: done for done in finished}
    states = []
    for done in finished:
        if done.node.kind == "judge":
            # Two names for the same parameters share a folder, so the labels come from the node, not from its record.
            measured = by_key[done.node.parents[0].key]
            facts = measured.record["facts"]
            state = read_measurements(done.node.parents[0], measured.folder, done.folder, int(facts.get("samples", 0)))
            states.append(replace(state, diverged=facts.get(DIVERGED)))
        elif done.node.kind == "search":
            for trial in read_trials(done.folder):
                folder = trial_folder(done.folder, trial.number)
                state = read_measurements(done.node, folder, folder, trial.samples)
                states.append(replace(state, trial=trial.number, setting=trial.parameters))
    return states
