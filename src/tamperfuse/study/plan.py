"""The nodes of a study: what each does, what its result depends on, what it will cost."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tamperfuse.attacks import ATTACKS, AttackResult
from tamperfuse.attacks.base import check_measured
from tamperfuse.corpora.tasks import benign_task
from tamperfuse.defenses import DEFENSES
from tamperfuse.models.conversion import absolute_name
from tamperfuse.models.finite import Diverged
from tamperfuse.models.load import write_checkpoint
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash
from tamperfuse.records.provenance import Provenance
from tamperfuse.records.results import AS_SHIPPED, UNDEFENDED
from tamperfuse.study.context import StudyContext
from tamperfuse.study.data_nodes import (
    ANSWERS,
    answers_node,
    calibration_node,
    defense_data,
    defense_data_nodes,
)
from tamperfuse.study.estimates import Costs, capability_tokens, judging_tokens, training_tokens
from tamperfuse.study.further_judges import further_judge_nodes
from tamperfuse.study.judging import read_thresholds
from tamperfuse.study.keys import before_attack_key, builtin_hash, component_key, judging_key, observation_key, uses_key
from tamperfuse.study.labels import attack_label, before_attack_label, hardened_label, judge_label
from tamperfuse.study.node import Node, Outcome, check_graph, node_folder
from tamperfuse.study.observe import Observer
from tamperfuse.study.results.capability import guessed_tasks
from tamperfuse.study.results.undecided import undecided_note
from tamperfuse.study.search.node import SearchInputs, search_node
from tamperfuse.study.tables import DIVERGED, Response, VerdictRow, read_rows, write_rows
from tamperfuse.training.checkpoints import current_block
from tamperfuse.training.distillation import load_teacher, save_teacher

log = logging.getLogger("tamperfuse")

TEACHER = "teacher.safetensors"  # the shipped model's predictions on harmless prompts


def build_nodes(context: StudyContext) -> list[Node]:
    """All nodes of a study, parents first."""
    answers = answers_node(context, "attacker", ANSWERS)
    calibration = calibration_node(context, answers)
    shipped = _measure_shipped_node(context)
    nodes = [answers, calibration, shipped, _judge_node(context, shipped, calibration)]
    for seed in context.study.seeds:
        hardened: dict[str, Node] = {}
        measured: dict[str, Node] = {}
        for name in context.study.ordered_defenses():
            needed = defense_data_nodes(context, name, seed)
            nodes += [node for node in needed if all(node.key != other.key for other in nodes)]
            base = context.study.defenses[name].on
            hardened[name] = _defense_node(context, name, [*([hardened[base]] if base else []), *needed], seed)
            measured[name] = _measure_node(context, name, hardened[name], shipped, seed)
            nodes += [hardened[name], measured[name], _judge_node(context, measured[name], calibration)]
        for attack, spec in context.study.attacks.items():
            for name, model in hardened.items():
                if spec.search:
                    inputs = SearchInputs(model, answers, calibration, shipped, measured[UNDEFENDED])
                    nodes.append(search_node(context, name, attack, inputs, seed))
                    continue
                attacked = _attack_node(context, name, attack, (model, answers), seed)
                nodes += [attacked, _judge_node(context, attacked, calibration)]
    nodes += further_judge_nodes(context, nodes, answers)
    check_graph(nodes)
    return nodes


def _defense_node(context: StudyContext, name: str, parents: Sequence[Node], seed: int) -> Node:
    spec = context.study.defenses[name]
    component = DEFENSES.get(spec.defense)
    parameters = component.parse(spec.parameters, f"defense {name}")
    evaluate = context.study.evaluate

    def run(folder: Path) -> Outcome:
        base = next((parent for parent in parents if parent.kind == "defense"), None)
        source = str(node_folder(context.run, base) / "checkpoint") if base else context.study.model
        data = defense_data(context, name, parents)
        with context.model(source) as loaded:
            result = component.run(loaded, data, parameters, seed)
            (folder / "checkpoint").mkdir()
            provenance = Provenance(
                origin=context.study.model,
                made_by=f"{spec.defense} (seed {seed})",
                source=spec.on or context.study.model,
                threat=absolute_name(context.study.threat),
                parameters=parameters.model_dump(mode="json"),
            )
            write_checkpoint(loaded, folder / "checkpoint", provenance)
        return Outcome(Costs(trained=result.tokens_trained), notes=result.notes, facts=dict(result.facts))

    depends = {
        "model": context.fingerprint,
        "threat": context.threat.fingerprint,
        "defense": component_key(component, parameters.model_dump(mode="json")),
        "limit": evaluate.response_tokens,
        "refusals": builtin_hash("refusals"),
    }
    budget = component.traits.budget(parameters)
    expected = Costs(trained=training_tokens(budget, evaluate))
    return Node(hardened_label(name, seed), "defense", tuple(parents), depends, seed, run, expected, budget=budget)


def _measure_shipped_node(context: StudyContext) -> Node:
    """Measure the model as shipped, and store what it predicts on harmless prompts."""
    evaluate = context.study.evaluate

    def run(folder: Path) -> Outcome:
        with context.model(context.study.model) as loaded:
            observer = Observer(loaded, context.threat, evaluate)
            observer.before_attack(context.harmless, evaluation=evaluate.prompts, dev=0)
            save_teacher(folder / TEACHER, observer.teacher())
            observer.write(folder)
        undefined = guessed_tasks(observer.items)
        if undefined and any(attack.search for attack in context.study.attacks.values()):
            raise UserError(f"A search needs the capability of attacked models. {undefined[0]}")
        return Outcome(observer.costs, notes=undefined)

    node = _before_attack_node(context, AS_SHIPPED, AS_SHIPPED, (), 0, run, dev=0)
    return replace(node, predictions=evaluate.harmless * evaluate.response_tokens)


def _measure_node(context: StudyContext, name: str, hardened: Node, shipped: Node, seed: int) -> Node:
    """Measure a hardened model before any attack, and how far its predictions are from those of the model as shipped."""
    evaluate = context.study.evaluate

    def run(folder: Path) -> Outcome:
        with context.model(str(node_folder(context.run, hardened) / "checkpoint")) as loaded:
            observer = Observer(loaded, context.threat, evaluate)
            observer.before_attack(context.harmless, evaluation=evaluate.prompts, dev=evaluate.dev_prompts)
            observer.divergence(0, load_teacher(node_folder(context.run, shipped) / TEACHER))
            observer.write(folder)
        return Outcome(observer.costs)

    parents = hardened, shipped
    return _before_attack_node(context, hardened_label(name, seed), name, parents, seed, run, dev=evaluate.dev_prompts)


def _before_attack_node(
    context: StudyContext,
    model: str,
    defense: str,
    parents: tuple[Node, ...],
    seed: int,
    run: Callable[[Path], Outcome],
    *,
    dev: int,
) -> Node:
    evaluate = context.study.evaluate
    prompts = evaluate.prompts + dev + evaluate.harmless
    depends = {"model": context.fingerprint, **before_attack_key(context, dev=dev)}
    about = {"defense": defense, "attack": "", "malicious": False}
    expected = Costs(0, prompts * evaluate.response_tokens * 3 // 4, capability_tokens(evaluate))
    return Node(before_attack_label(model), "measure", parents, depends, seed, run, expected, about, prompts)


def _attack_node(context: StudyContext, name: str, attack: str, parents: tuple[Node, Node], seed: int) -> Node:
    """One attack on one model, measured from step 1 on; step 0 is the model before any attack.

    An attack that diverges is no error of the study: the node records the step, and results leave the attack on this model out.
    """
    hardened, answers = parents
    spec, evaluate = context.study.attacks[attack], context.study.evaluate
    component = ATTACKS.get(spec.attack)
    parameters = component.parse(spec.parameters, f"attack {attack}")
    budget, malicious = component.traits.budget(parameters), component.traits.malicious
    context.check_samples(attack, budget)
    steps = budget.steps or 1
    at_steps, capability_at = evaluate.measured_at(steps), evaluate.capability_measured_at(steps)
    if not malicious:  # controls are measured once, at their end
        at_steps = capability_at = (steps,)
    curve, dev = evaluate.curve_prompts, evaluate.dev_prompts if malicious else 0
    task = component.traits.task(parameters)
    items = benign_task(task, seed) if task else ([], [])

    def run(folder: Path) -> Outcome:
        diverged: dict[str, int] = {}
        with context.model(str(node_folder(context.run, hardened) / "checkpoint")) as loaded:
            observer = Observer(loaded, context.threat, evaluate, current_block().folder)

            def hook(step: int) -> None:
                def measure(observer: Observer) -> None:
                    observer.ask(step, curve, dev)
                    if step in capability_at:
                        observer.capability(step)
                    if task:
                        observer.benign_task(step, task, items[1])

                observer.once(step, measure)

            data = context.attack_data(component.traits, node_folder(context.run, answers), observer, at_steps, hook)
            try:
                result = component.run(loaded, data, parameters, seed)
                check_measured(spec.attack, at_steps, {response.step for response in observer.responses})
            except Diverged as error:
                log.warning("%s says nothing about the defense. %s", label, error)
                tokens = training_tokens(budget, evaluate) * error.step // steps  # an estimate
                result, diverged = AttackResult(tokens_trained=tokens, notes=(str(error),)), {DIVERGED: error.step}
            observer.write(folder)  # the attacked weights are not written
        costs = observer.costs + Costs(trained=result.tokens_trained)
        return Outcome(costs, notes=result.notes, facts={"samples": result.samples, **diverged})

    depends = {
        **observation_key(context, evaluation=curve, dev=dev),
        "attack": component_key(component, parameters.model_dump(mode="json")),
        "at_steps": at_steps,
        "task": content_hash(items) if task else "",
        "uses": {name: uses_key(context, name) for name in component.traits.uses},
        "capability_at": capability_at,
    }
    prompts = len(at_steps) * (curve + dev)
    expected = Costs(
        training_tokens(budget, evaluate) * (100 if malicious else 72) // 100,
        prompts * evaluate.response_tokens * 9 // 10,
        len(capability_at) * capability_tokens(evaluate),
    )
    label = attack_label(name, attack, seed)
    about = {"defense": name, "attack": attack, "malicious": malicious, "has_steps": budget.trains}
    return Node(label, "attack", parents, depends, seed, run, expected, about, prompts, budget)


def _judge_node(context: StudyContext, observed: Node, calibration: Node) -> Node:
    def run(folder: Path) -> Outcome:
        responses = read_rows(node_folder(context.run, observed) / "responses.parquet", Response)
        rows, scored = context.judging.verdicts(responses, read_thresholds(node_folder(context.run, calibration)))
        write_rows(folder / "scores.parquet", VerdictRow, rows)
        return Outcome(Costs(scored=scored), undecided_note(rows))

    tokens = 0
    if context.judging.traits.needs_reference:
        tokens = judging_tokens(observed.expected.generated, context.study.evaluate)
    expected = Costs(scored=tokens if observed.kind == "attack" else tokens // 2)
    parents = (observed, calibration)
    key = judging_key(context.judging, context.fingerprint)
    return Node(judge_label(observed), "judge", parents, key, 0, run, expected)
