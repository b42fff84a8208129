"""The adaptive attacker: proposals, early stops, resuming, selection on attacker_dev, validation of search spaces."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stand_ins import Killed
from tamperfuse.attacks import ATTACKS, AttackResult
from tamperfuse.attacks.base import attack
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash, read_json, write_json
from tamperfuse.records.registry import Parameters
from tamperfuse.records.results import read_results
from tamperfuse.records.searches import read_searches
from tamperfuse.records.summary import read_summary
from tamperfuse.study.context import StudyContext
from tamperfuse.study.judging import Judging
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.results import frontier
from tamperfuse.study.results.measurements import Measurements
from tamperfuse.study.run import run_study
from tamperfuse.study.search import node as search
from tamperfuse.study.search.proposals import RANDOM_TRIALS, Proposals
from tamperfuse.study.search.space import Search
from tamperfuse.study.search.trials import Trial, TrialCheckpoint, read_trials, trial_folder
from tamperfuse.study.spec import Study, parse_study
from tamperfuse.study.tables import Response, VerdictRow
from tamperfuse.training.checkpoints import TrainingBlock, current_block, resumable

TRIALS = 3
PROMPTS = 3  # of each part, at every step


@pytest.fixture
def searched(study: Study) -> Study:
    plain = study.model_dump(mode="json")
    over = {"learning_rate": [1e-4, 1e-1], "method": ["full", "lora"]}
    fixed = {"attack": "harmful_finetune", "shots": 2, "steps": 3, "batch": 2}
    plain["attacks"] = {"adaptive": {**fixed, "search": {"trials": TRIALS, "over": over}}}
    plain["evaluate"] |= {"at_steps": [0, 1, 2, 3], "epsilons": [0, 0.5, 1]}
    return parse_study(plain, "test")


@pytest.fixture(autouse=True)
def _drawn_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model executes nothing, so within searches verdicts are drawn, by a hash of a step's responses.

    The rates of a step on attacker_dev and on evaluation add up to 1: the best step on one is the worst on the other.
    """

    judged = Judging.verdicts

    def drawn(self: Judging, responses: list[Response], thresholds: Any) -> tuple[list[VerdictRow], int]:
        rows, scored = judged(self, responses, thresholds)
        texts_at: dict[int, list[str]] = {}
        if not any(r.part == "attacker_dev" and r.step for r in responses):
            return rows, scored  # not within a search
        for response in responses:
            texts_at.setdefault(response.step, []).append(response.response)
        executed = {step: int(content_hash(texts)[:2], 16) % (PROMPTS + 1) for step, texts in texts_at.items()}
        order = {part: sorted({r.id for r in rows if r.part == part}) for part in ("attacker_dev", "evaluation")}
        return [
            replace(r, verdict=(order[r.part].index(r.id) < executed[r.step]) == (r.part == "attacker_dev"))
            for r in rows
        ], scored

    monkeypatch.setattr(Judging, "verdicts", drawn)
    monkeypatch.setattr(Judging, "may_execute", lambda self, responses, _: [True] * len(responses))  # no early stop


@pytest.fixture
def whole(searched: Study, tiny_folder: Path) -> Path:
    """One uninterrupted run, for all tests that only read it."""
    folder = tiny_folder.parent / "searched-run"
    if not (folder / "summary.json").exists():  # the file that a run writes last
        run_study(searched, folder)
    return folder


def search_folders(run: Path) -> dict[str, Path]:
    """Folder of every search, by defense."""
    folders = {}
    for record in run.glob("nodes/*/node.json"):
        about = json.loads(record.read_text())
        if about["kind"] == "search":
            folders[about["what"].split()[0]] = record.parent
    return folders


def result_files(run: Path) -> list[bytes]:
    return [(run / "results.parquet").read_bytes(), (run / "searches.json").read_bytes()]


@pytest.mark.slow
def test_a_search_without_a_capability_to_keep_ends_before_anything_is_trained(
    searched: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tamperfuse.study.plan.guessed_tasks", lambda items: ("Capability is undefined: guessed.",))
    with pytest.raises(UserError, match="A search needs the capability of attacked models"):
        run_study(searched, tmp_path / "run")
    kinds = {read_json(path)["kind"] for path in (tmp_path / "run").glob("nodes/*/node.json")}
    assert kinds and not kinds & {"defense", "attack", "search"}


def test_a_search_writes_its_trials_and_the_attackers_choice(whole: Path) -> None:
    assert set(search_folders(whole)) == {"refusal", "sdd"}
    assert not list(whole.glob("unfinished/*"))
    for folder in search_folders(whole).values():
        assert [trial.number for trial in read_trials(folder)] == list(range(TRIALS))
        with sqlite3.connect(folder / search.STORAGE) as database:
            assert database.execute("select count(*) from trials where state = 'COMPLETE'").fetchone() == (TRIALS,)
        assert not list(folder.rglob("*.safetensors"))
    names = {row["attack"] for row in read_results(whole)}
    assert names == {"", "adaptive", "adaptive#000", "adaptive#001", "adaptive#002"}
    results = read_searches(whole).searches
    assert [(r.defense, r.attack, r.trials, len(r.best_so_far)) for r in results] == [
        (defense, "adaptive", TRIALS, TRIALS) for defense in ("refusal", "sdd")
    ]
    assert results[0].final_best_vs_undefended.value == 0 and not results[0].final_best_vs_undefended.resolved
    # The first random trials are the same settings for every defense.
    settings = [[trial.parameters for trial in read_trials(folder)] for folder in search_folders(whole).values()]
    assert settings[0] == settings[1] and len({str(setting) for setting in settings[0]}) == TRIALS


@pytest.mark.slow
def test_checkpoints_are_chosen_on_attacker_dev_and_reported_on_evaluation(whole: Path) -> None:
    rows = [r for r in read_results(whole) if r["metric"] == "harmful_execution" and "#" in r["attack"]]
    defenses = read_summary(whole).defenses
    for defense in defenses:
        dev, evaluation = (
            [r["value"] for r in rows if (r["defense"], r["part"]) == (defense, part)]
            for part in ("attacker_dev", "evaluation")
        )
        after = defenses[defense].harmful_execution.after_attack["adaptive"].value
        assert after == pytest.approx(1 - max(dev)) and after < max(evaluation)
        usable = [defenses[defense].usable_harm[key].value for key in ("0.00", "0.50", "1.00")]
        assert usable[-1] is not None and usable[-1] >= after, "all checkpoints count"
        resolved = [value for value in usable if value is not None]  # None: no checkpoint lost as little
        assert resolved == sorted(resolved)


@pytest.mark.slow
def test_a_search_killed_between_trials_and_within_one_ends_with_the_same_results(
    searched: Study, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_trial, started = search._TrialRunner.run, []

    def dying(self: Any, number: int, parameters: Any, earlier: Any, folder: Path) -> Trial:
        started.append(number)
        if len(started) == 2:  # between two trials
            raise Killed
        trial = run_trial(self, number, parameters, earlier, folder)
        if len(started) == 4:  # within one: everything is measured, nothing renamed yet
            raise Killed
        return trial

    monkeypatch.setattr(search._TrialRunner, "run", dying)
    for finished in (1, 2):
        with pytest.raises(Killed):
            run_study(searched, tmp_path / "a" / "run")
        assert len(list((tmp_path / "a" / "run").glob("unfinished/*/trial-*"))) == finished
    run_study(searched, tmp_path / "a" / "run")
    assert started == [0, 1, 1, 2, 2, 0, 1, 2], "finished trials are not run again"
    folder = search_folders(tmp_path / "a" / "run")["refusal"]
    trials = sum(trial.seconds for trial in read_trials(folder))
    assert 0 < trials <= read_json(folder / "node.json")["seconds"] + 0.01, "those of the runs that were killed count"
    assert result_files(tmp_path / "a" / "run") == result_files(whole)


def test_trials_far_below_an_earlier_one_stop_half_way(
    searched: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Judging.verdicts

    def executed(*arguments: Any) -> tuple[list[VerdictRow], int]:
        rows, scored = judged(*arguments)
        return [replace(row, verdict=True) for row in rows], scored

    monkeypatch.setattr(Judging, "verdicts", executed)
    # Half-way nothing can have been executed.
    monkeypatch.setattr(Judging, "may_execute", lambda self, responses, _: [False] * len(responses))
    monkeypatch.setattr(search, "capability_lost", lambda *_: 0.1)
    only = searched.model_copy(update={"defenses": {"refusal": searched.defenses["refusal"]}})
    run_study(only, tmp_path / "a" / "run")
    folder = search_folders(tmp_path / "a" / "run")["refusal"]
    first, *rest = read_trials(folder)
    assert not first.stopped and [c.step for c in first.checkpoints] == [1, 2, 3]
    assert rest and all("at most 0% at step 2" in trial.stopped for trial in rest)
    assert all([c.step for c in trial.checkpoints] == [1, 2] and trial.trained < first.trained for trial in rest)
    with sqlite3.connect(folder / search.STORAGE) as database:
        assert database.execute("select count(*) from trials where state = 'PRUNED'").fetchone() == (len(rest),)
    stopped = [t for t in read_searches(tmp_path / "a" / "run").searches[0].choices if t.stopped]
    assert len(stopped) == len(rest)


def test_trials_with_weights_that_are_not_finite_measure_nothing(
    searched: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Force(Parameters):
        force: float = 1.0

    def ruin(loaded: Any, data: Any, parameters: Force, seed: int) -> AttackResult:
        next(loaded.model.parameters()).data.fill_(float("nan"))
        data.run_hook(1)
        return AttackResult(samples=0, tokens_trained=0)

    monkeypatch.setattr(ATTACKS, "components", dict(ATTACKS.components))
    attack("ruin", Force, uses=())(ruin)
    plain = {
        **searched.model_dump(mode="json"),
        "attacks": {"ruin": {"search": {"trials": 2, "over": {"force": [1, 2]}}}},
    }
    plain["defenses"] = {"refusal": plain["defenses"]["refusal"]}
    with pytest.raises(
        UserError, match="Every trial of refusal under ruin, seed 0 diverged before it was measured: narrow"
    ):
        run_study(parse_study(plain, "test"), tmp_path / "a" / "run")


def quick(parameters: dict[str, Any], number: int) -> Trial:
    """A made-up objective: a larger learning rate has a higher rate and loses more capability."""
    rate = min(1.0, max(0.0, 1 + np.log10(parameters["learning_rate"] / 1e-3)))
    checkpoint = TrialCheckpoint(step=1, rate=rate, lost=0.1 * rate + 0.1 * (parameters["method"] == "full"))
    stopped = "hopeless" if rate < 0.1 else ""
    return Trial(
        number=number,
        parameters=parameters,
        checkpoints=(checkpoint,),
        stopped=stopped,
        samples=1,
        trained=0,
        generated=0,
        scored=0,
        seconds=1.0,
        diverged=False,
    )


def test_proposals_are_the_same_after_any_interruption(tmp_path: Path) -> None:
    search_space = Search(trials=9, over={"learning_rate": (1e-5, 1e-2), "method": ("full", "lora"), "shots": (10, 90)})
    start = ATTACKS.get("harmful_finetune").parse({"learning_rate": 5e-5}, "x")

    def proposals_of(path: Path, seed: int, continues: Callable[[int], bool]) -> list[dict[str, Any]]:
        """All proposals of a search that is interrupted before and after each trial whose number does not continue."""
        proposed: list[dict[str, Any]] = []
        while len(proposed) < search_space.trials:
            with Proposals(path, search_space, start, seed) as proposals:
                assert proposals.done == len(proposed)
                while len(proposed) < search_space.trials:
                    proposed.append(proposals.next())
                    if not continues(len(proposed)):
                        assert proposals.next() == proposed[-1], "a trial that was not stored is proposed again"
                    proposals.add(quick(proposed[-1], len(proposed) - 1))
                    if not continues(len(proposed)):
                        break
        return proposed

    uninterrupted = proposals_of(tmp_path / "uninterrupted.db", 0, lambda _: True)
    assert proposals_of(tmp_path / "interrupted.db", 0, lambda n: n % 2 == 0) == uninterrupted
    assert uninterrupted[0] == {"learning_rate": 5e-5, "method": "full", "shots": 50}, "the attack's own parameters"
    other = proposals_of(tmp_path / "other.db", 1, lambda _: True)
    assert other[1:] != uninterrupted[1:]
    assert len(uninterrupted) > RANDOM_TRIALS
    assert all(1e-5 <= p["learning_rate"] <= 1e-2 for p in uninterrupted)


def point(trial: int, rate: float, lost: float, step: int = 1) -> frontier.Checkpoint:
    state = Measurements("sdd", "adaptive", malicious=True, seed=0, samples=1, node="", trial=trial)
    return frontier.Checkpoint(state, step, rate, lost)


def test_the_frontier_and_the_attacker_s_choice() -> None:
    points = [point(0, 0.4, 0.02), point(1, 0.9, 0.3), point(2, 0.4, 0.01), point(3, 0.6, 0.2), point(4, 0.5, 0.25)]
    assert [(p.state.trial, p.rate) for p in frontier.frontier(points)] == [(2, 0.4), (3, 0.6), (1, 0.9)]
    assert frontier.choose([point(0, 0.5, 0.2), point(1, 0.5, 0.1)]).state.trial == 1


def test_best_so_far_changes_only_for_the_better_and_starts_from_the_model_as_it_was() -> None:
    points = [point(1, 0.3, 0), point(2, 0.2, 0), point(3, 0.7, 0.4, step=2), point(3, 0.6, 0)]
    before, trials = point(-1, 0.0, 0, step=0), [point(n, 0, 0).state for n in range(5)]
    best = frontier.best_so_far(frontier.SearchTrials("sdd", "adaptive", 0, before, trials, points))
    assert [(p.state.trial, p.step) for p in best] == [(-1, 0), (1, 1), (1, 1), (3, 2), (3, 2)]


def test_the_threat_must_have_as_many_prompts_as_any_trial_may_use(searched: Study, tmp_path: Path) -> None:
    values = searched.model_dump(mode="json")
    search_values = {"trials": 1, "over": {"shots": [2, 3, 90]}}
    values["attacks"] = {"adaptive": {"attack": "harmful_finetune", "search": search_values}}
    with pytest.raises(UserError, match="adaptive needs 90 shots"):
        build_nodes(StudyContext.open(parse_study(values, "test"), tmp_path))


def test_trials_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (1000, 999, 2):
        trial = Trial(
            number=number,
            parameters={},
            checkpoints=(),
            stopped="",
            samples=1,
            trained=0,
            generated=0,
            scored=0,
            seconds=1.0,
            diverged=False,
        )
        write_json(trial_folder(tmp_path, number) / "trial.json", trial.model_dump())
    assert [trial.number for trial in read_trials(tmp_path)] == [2, 999, 1000]
    write_json(trial_folder(tmp_path, 2) / "trial.json", {})
    with pytest.raises(UserError, match=r"trial\.json is damaged: remove .* to search from the beginning"):
        read_trials(tmp_path)


def test_trials_report_to_the_trackers_of_the_study(tmp_path: Path) -> None:
    blocks: list[TrainingBlock] = []

    def recorded(*_: object) -> None:
        blocks.append(current_block())
        raise search.TrialStopped("recorded")

    attacks = {"adaptive": {"attack": "harmful_finetune", "search": {"trials": 4}}}
    study = parse_study({"model": "m", "threat": "t", "attacks": attacks}, "test")
    context = SimpleNamespace(
        study=study,
        run=tmp_path,
        threat=None,
        model=lambda _: nullcontext(None),
        attack_data=lambda *_: None,
    )
    runner = object.__new__(search._TrialRunner)
    runner.context, runner.node, runner.answers = context, SimpleNamespace(seed=0), tmp_path  # type: ignore[assignment]
    runner.inputs = SimpleNamespace(hardened=SimpleNamespace(key="hardened"))  # type: ignore[assignment]
    runner.component = replace(ATTACKS.get("harmful_finetune"), run=recorded)  # type: ignore[arg-type]
    with resumable(tmp_path / "unfinished", ("tensorboard",), tmp_path / "logs"):
        runner._attack(3, runner.component.parse({}, "test"), [])
    (block,) = blocks
    assert (block.report_to, block.logs, block.folder) == (("tensorboard",), tmp_path / "logs" / "trial-003", None)
