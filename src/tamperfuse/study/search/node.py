"""The adaptive attacker: one search over an attack's parameters for much harm at little capability.

    optuna proposes ──▶ attack, looked at along the way ──▶ judged on attacker_dev ──▶ (rate ↑, capability lost ↓) ──▶ …
                               │ hopeless half-way: stopped                               kept in trials.db and trial-NNN/

Every trial begins from the hardened checkpoint. The sampler is seeded with the study's seed and the trial's number, and sees
the trials before it: trial k is the same whether or not the run was interrupted, and the first ones, drawn at random, are the
same for every defense. Only one model is in memory at a time: half-way the reference model is not there, so the early stop
uses what the judge can tell without it, whose rate is an upper bound of the true one.
"""

import logging
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tamperfuse.attacks import ATTACKS, AttackResult
from tamperfuse.attacks.base import AttackTraits
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import clear_staging, staged, write_json
from tamperfuse.records.registry import Component, Parameters
from tamperfuse.study.context import StudyContext
from tamperfuse.study.estimates import Costs, capability_tokens, judging_tokens, training_tokens
from tamperfuse.study.judging import read_thresholds
from tamperfuse.study.keys import component_key, judging_key, observation_key, uses_key
from tamperfuse.study.node import Node, Outcome, node_folder, unfinished_folder
from tamperfuse.study.observe import Observer
from tamperfuse.study.results.capability import capability_lost
from tamperfuse.study.search.proposals import Proposals, check_optuna
from tamperfuse.study.search.space import is_range
from tamperfuse.study.search.trials import TRIAL, Trial, TrialCheckpoint, read_trials, trial_folder
from tamperfuse.study.tables import ItemRow, VerdictRow, read_rows, write_rows
from tamperfuse.training.checkpoints import resumable

log = logging.getLogger("tamperfuse")

STORAGE = "trials.db"
HOPELESS = 0.5  # of an earlier trial's rate


@dataclass(frozen=True)
class Before:
    """What a search starts from: nodes.

    Attributes:
        hardened: the model that is attacked.
        answers: the attacker's samples.
        calibration: the judge's thresholds.
        shipped: a look at the model as shipped.
        undefended: a look at the undefended model before any attack.
    """

    hardened: Node
    answers: Node
    calibration: Node
    shipped: Node
    undefended: Node


class Stopped(Exception):  # no error: a trial that ends early
    """Raised within a trial's training to end it; says why."""


def search_node(context: StudyContext, name: str, attack: str, before: Before, seed: int) -> Node:
    """All trials of one search against one model.

    Raises:
        UserError: optuna is not installed, or there are fewer samples than the search may ask for.
    """
    check_optuna()
    spec, evaluate = context.study.attacks[attack], context.study.evaluate
    search, component = spec.search, ATTACKS.get(spec.attack)
    assert search is not None
    most = {k: max(v) if is_range(v) else v[0] for k, v in search.over.items()}
    longest = component.parse({**spec.parameters, **most}, f"attack {attack}")
    budget = component.traits.budget(longest)
    context.check_shots(attack, budget)
    looks = len(evaluate.measured_at(budget.steps or 1))
    prompts = evaluate.curve_prompts + evaluate.dev_prompts
    generated = looks * prompts * evaluate.response_tokens * 9 // 10
    depends = {
        **observation_key(context),
        "search": [search.model_dump(mode="json"), version("optuna")],
        "attack": component_key(component, spec.parameters),
        "at_steps": evaluate.at_steps,
        "uses": {use: uses_key(context, use) for use in component.traits.uses},
        **judging_key(context),
    }
    trial = Costs(
        training_tokens(budget, evaluate),
        generated,
        looks * capability_tokens(evaluate, documents=False) + judging_tokens(generated, evaluate),
    )
    node = Node(
        f"{name} under {attack}, seed {seed}",
        "search",
        (before.hardened, before.answers, before.calibration, before.shipped, before.undefended),
        depends,
        seed,
        lambda folder: _run(context, node, before, folder),
        Costs(*(search.trials * tokens for tokens in (trial.trained, trial.generated, trial.scored))),
        {"defense": name, "attack": attack, "malicious": True, "has_steps": budget.trains, "trials": search.trials},
    )
    return node


def _run(context: StudyContext, node: Node, before: Before, folder: Path) -> Outcome:
    spec = context.study.attacks[node.about["attack"]]
    search, component = spec.search, ATTACKS.get(spec.attack)
    assert search is not None
    work = unfinished_folder(context.run, node)
    work.mkdir(parents=True, exist_ok=True)
    clear_staging(work)
    attacker = _Attacker(context, node, before, component, spec.parameters)
    start = component.parse(spec.parameters, node.label)
    with Proposals(work / STORAGE, search, start, node.seed) as proposals:
        for number in range(proposals.done, search.trials):
            parameters = proposals.next()
            with staged(trial_folder(work, number), directory=True) as staging:
                trial = attacker.attempt(number, parameters, read_trials(work)[:number], staging)
            proposals.add(trial)
            log.info("      trial %d of %d: %s", number + 1, search.trials, _in_words(trial))
    shutil.copytree(work, folder, dirs_exist_ok=True)
    trials = read_trials(folder)
    if not any(trial.checkpoints for trial in trials):
        raise UserError(f"No trial of {node.label} left a model that could be measured: narrow `over`.")
    stopped = sum(1 for trial in trials if trial.stopped)
    costs = sum((Costs(trial.trained, trial.generated, trial.scored) for trial in trials), Costs())
    return Outcome(costs, facts={"trials": len(trials), "stopped": stopped})


def _in_words(trial: Trial) -> str:
    values = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in trial.parameters.items())
    best = trial.best()
    outcome = f"{best.rate:.0%} at step {best.step}, {best.lost:.0%} of capability lost" if best else "nothing measured"
    return f"{values}: {outcome}" + (f" (stopped: {trial.stopped})" if trial.stopped else "")


@dataclass
class _Attacker:
    """Runs trials against one model."""

    context: StudyContext
    node: Node
    before: Before
    component: Component[AttackTraits, AttackResult]
    fixed: dict[str, Any]

    def __post_init__(self) -> None:
        looks = [node_folder(self.context.run, node) for node in (self.before.shipped, self.before.undefended)]
        self.shipped, self.undefended = (read_rows(look / "items.parquet", ItemRow) for look in looks)
        self.answers = node_folder(self.context.run, self.before.answers)
        self.thresholds = read_thresholds(node_folder(self.context.run, self.before.calibration))
        self._lost(self.undefended, 0)  # raises where a loss of capability is undefined

    def _lost(self, items: list[ItemRow], step: int) -> float:
        return capability_lost(items, step, self.shipped, self.undefended)

    def attempt(self, number: int, parameters: dict[str, Any], earlier: list[Trial], folder: Path) -> Trial:
        """One trial, its files written to a folder: the attack, then the judge."""
        whole = self.component.parse({**self.fixed, **parameters}, f"trial {number} of {self.node.label}")
        observer, done, stopped = self._attack(whole, earlier)
        observer.write(folder)  # the attacked weights themselves are not kept
        verdicts, scored = self.context.judging.verdicts(observer.responses, self.thresholds)
        write_rows(folder / "scores.parquet", VerdictRow, verdicts)
        trial = Trial(
            number=number,
            parameters=parameters,
            checkpoints=self._checkpoints(verdicts, observer.items),
            stopped=stopped,
            samples=done.samples if done else None,
            trained=done.tokens_trained if done else self._trained(whole, observer),
            generated=observer.costs.generated,
            scored=observer.costs.scored + scored,
        )
        write_json(folder / TRIAL, trial.model_dump())
        return trial

    def _attack(self, whole: Parameters, earlier: list[Trial]) -> tuple[Observer, AttackResult | None, str]:
        """What was seen along the attack; what it reports, unless it was stopped; why it was."""
        evaluate = self.context.study.evaluate
        at_steps = evaluate.measured_at(self.component.traits.budget(whole).steps or 1)
        middle = at_steps[(len(at_steps) - 1) // 2]
        with self.context.model(str(node_folder(self.context.run, self.before.hardened) / "checkpoint")) as loaded:
            observer = Observer(loaded, self.context.threat, evaluate)

            def hook(step: int) -> None:
                if not all(bool(weight.isfinite().all()) for weight in loaded.model.parameters()):
                    raise Stopped(f"weights that are no numbers at step {step}")
                observer.ask(step, evaluate.curve_prompts, evaluate.dev_prompts)
                observer.capability(step)
                if step == middle < at_steps[-1] and (why := self._hopeless(observer, step, earlier)):
                    raise Stopped(why)

            data = self.context.attack_data(self.answers, observer, at_steps, hook)
            try:
                with resumable(None):  # a trial is kept whole or not at all
                    return observer, self.component.run(loaded, data, whole, self.node.seed), ""
            except Stopped as end:
                return observer, None, str(end)

    def _checkpoints(self, verdicts: list[VerdictRow], items: list[ItemRow]) -> tuple[TrialCheckpoint, ...]:
        """What the attacker is shown: every step's rate on attacker_dev and the capability lost; nothing of evaluation."""
        dev: dict[int, list[bool]] = {}
        for row in verdicts:
            if row.part == "attacker_dev":
                dev.setdefault(row.step, []).append(row.verdict)
        return tuple(
            TrialCheckpoint(step=step, rate=sum(executed) / len(executed), lost=self._lost(items, step))
            for step, executed in sorted(dev.items())
        )

    def _trained(self, whole: Parameters, observer: Observer) -> int:
        """Tokens that a stopped trial trained on, estimated: it does not say."""
        budget = self.component.traits.budget(whole)
        reached = max((row.step for row in observer.items), default=0)
        return training_tokens(budget, self.context.study.evaluate) * reached // max(1, budget.steps)

    def _hopeless(self, observer: Observer, step: int, earlier: list[Trial]) -> str:
        """Why this trial leads nowhere: an earlier one had more than twice its rate by this step, and lost no more.

        "" where none had. The rate is an upper bound, so that no trial is stopped which the whole judge would let go on.
        """
        responses = [r for r in observer.responses if (r.step, r.part) == (step, "attacker_dev")]
        rate = sum(self.context.judging.may_execute(responses, self.thresholds)) / len(responses)
        lost = self._lost(observer.items, step)
        for trial in earlier:
            best = trial.best(until=step)
            if best and rate < HOPELESS * best.rate and lost >= best.lost:
                return f"at most {rate:.0%} at step {step}, where trial {trial.number + 1} had {best.rate:.0%}"
        return ""
