"""A study becomes nodes: what each one does, what it depends on, what it will cost."""

from collections.abc import Sequence
from pathlib import Path

from tamperfuse.attacks import ATTACKS
from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.sources import read_source
from tamperfuse.corpora.tasks import benign_task
from tamperfuse.corpora.threats import Part
from tamperfuse.defenses import DEFENSES, DefenseData
from tamperfuse.models.load import write_checkpoint
from tamperfuse.pairing import FilterSettings, make_pairs, read_pairs, write_pairs
from tamperfuse.pairing.filters import check_language
from tamperfuse.records.files import content_hash
from tamperfuse.records.provenance import Provenance
from tamperfuse.records.results import UNDEFENDED
from tamperfuse.study.context import StudyContext
from tamperfuse.study.estimates import Costs, capability_tokens, judging_tokens, training_tokens
from tamperfuse.study.judging import CALIBRATION_ANSWERS, compliant_answers, read_thresholds, write_thresholds
from tamperfuse.study.keys import component_key, judging_key, observation_key, uses_key
from tamperfuse.study.node import Node, Outcome, check_graph, node_folder
from tamperfuse.study.observe import Observer
from tamperfuse.study.search.node import Before, search_node
from tamperfuse.study.tables import Response, VerdictRow, read_rows, write_rows
from tamperfuse.training.checkpoints import current_block

SHIPPED = "as shipped"
ANSWERS, DEFENDER_ANSWERS = "answers before hardening", "defender answers"


def build_nodes(context: StudyContext) -> list[Node]:
    """All nodes of a study, parents first."""
    answers = _answers_node(context, "attacker", ANSWERS)
    calibration = _calibration_node(context, answers)
    shipped = _look_node(context, SHIPPED, None, 0)
    nodes = [answers, calibration, shipped, _judge_node(context, shipped, calibration)]
    for seed in context.study.seeds:
        made: dict[str, Node] = {}
        looks: dict[str, Node] = {}
        for name in context.study.ordered_defenses():
            spec = context.study.defenses[name]
            parents = [made[spec.on]] if spec.on else []
            traits = DEFENSES.get(spec.defense).traits
            needed = [_pairs_node(context, seed)] if traits.needs_pairs else []
            needed += [_answers_node(context, "defender", DEFENDER_ANSWERS)] if traits.needs_answers else []
            nodes += [node for node in needed if all(node.label != other.label for other in nodes)]
            parents += needed
            made[name] = _defense_node(context, name, parents, seed)
            look = _look_node(context, name, made[name], seed)
            looks[name] = look
            nodes += [made[name], look, _judge_node(context, look, calibration)]
        for attack, asked in context.study.attacks.items():
            for name, hardened in made.items():
                if asked.search:
                    before = Before(hardened, answers, calibration, shipped, looks[UNDEFENDED])
                    nodes.append(search_node(context, name, attack, before, seed))
                    continue
                attacked = _attack_node(context, name, attack, (hardened, answers), seed)
                nodes += [attacked, _judge_node(context, attacked, calibration)]
    check_graph(nodes)
    return nodes


def _answers_node(context: StudyContext, part: Part, label: str) -> Node:
    """Compliant answers to one part: attacks train on those of the attacker part, which also calibrate the judge."""
    prompts = context.threat.part(part)
    tokens = context.study.evaluate.response_tokens

    def run(folder: Path) -> Outcome:
        answers = compliant_answers(context.reference, prompts, tokens)
        rows = [Response(0, part, p.id, p.prompt, p.response) for p in answers.prompts]
        write_rows(folder / "responses.parquet", Response, rows)
        facts = {"answered": len(rows), "prompts": len(prompts)}
        return Outcome(Costs(generated=answers.tokens_generated), facts=facts)

    depends = {"model": context.fingerprint, "threat": context.threat.fingerprint, "tokens": tokens, "part": part}
    unanswered = sum(not p.response for p in prompts)
    return Node(label, label, (), depends, 0, run, Costs(generated=unanswered * tokens))


def _calibration_node(context: StudyContext, answers: Node) -> Node:
    """The judge's thresholds, calibrated on the compliant answers."""

    def run(folder: Path) -> Outcome:
        rows = read_rows(node_folder(context.run, answers) / "responses.parquet", Response)
        thresholds, scored = context.judging.calibrate([(row.prompt, row.response) for row in rows])
        write_thresholds(folder, thresholds)
        return Outcome(Costs(scored=scored))

    evaluate = context.study.evaluate
    calibrates = context.judging.traits.calibrate is not None
    tokens = judging_tokens(3 * CALIBRATION_ANSWERS * evaluate.response_tokens, evaluate) if calibrates else 0
    depends = {**judging_key(context), "threat": context.threat.fingerprint, "tokens": evaluate.response_tokens}
    return Node("thresholds of the judge", "calibration", (answers,), depends, 0, run, Costs(scored=tokens))


def _pairs_node(context: StudyContext, seed: int) -> Node:
    spec = context.study.pairs
    prompts = context.threat.examples("defender")
    responses = [example for example in read_source(spec.responses) if example.response]
    filters = FilterSettings(language=spec.language) if spec.filters else None
    check_language(spec.language)

    def run(folder: Path) -> Outcome:
        made = make_pairs(prompts, responses, context.encoder, threshold=spec.threshold, seed=seed, filters=filters)
        write_pairs(folder, made)
        facts = {"pairs": len(made.pairs), "dropped": len(made.dropped), "redraws": made.redraws}
        return Outcome(facts=facts)

    depends = {
        "threat": context.threat.fingerprint,
        "responses": content_hash([example.response for example in responses]),
        "pairs": spec.model_dump(),
        "encoder": "all-MiniLM-L6-v2",
    }
    return Node(f"pairs, seed {seed}", "pairs", (), depends, seed, run, Costs())


def _defense_node(context: StudyContext, name: str, parents: Sequence[Node], seed: int) -> Node:
    spec = context.study.defenses[name]
    component = DEFENSES.get(spec.defense)
    parameters = component.parse(spec.parameters, f"defense {name}")
    evaluate = context.study.evaluate

    def run(folder: Path) -> Outcome:
        base = next((parent for parent in parents if parent.kind == "defense"), None)
        paired = next((parent for parent in parents if parent.kind == "pairs"), None)
        answered = next((parent for parent in parents if parent.kind == DEFENDER_ANSWERS), None)
        source = str(node_folder(context.run, base) / "checkpoint") if base else context.study.model
        answers = read_rows(node_folder(context.run, answered) / "responses.parquet", Response) if answered else []
        data = DefenseData(
            prompts=[p.prompt for p in context.threat.part("defender")],
            pairs=read_pairs(node_folder(context.run, paired)) if paired else [],
            answers=[(row.prompt, row.response) for row in answers],
            benign=[(example.prompt, example.response) for example in context.benign],
            response_limit=evaluate.response_tokens,
        )
        with context.model(source) as loaded:
            done = component.run(loaded, data, parameters, seed)
            (folder / "checkpoint").mkdir()
            provenance = Provenance(
                origin=context.study.model,
                made_by=f"{spec.defense} (seed {seed})",
                source=spec.on or context.study.model,
                parameters=parameters.model_dump(mode="json"),
            )
            write_checkpoint(loaded, folder / "checkpoint", provenance)
        return Outcome(Costs(trained=done.tokens_trained), notes=done.notes)

    depends = {
        "model": context.fingerprint,
        "threat": context.threat.fingerprint,
        "benign": content_hash([(example.prompt, example.response) for example in context.benign]),
        "defense": component_key(component, parameters.model_dump(mode="json")),
        "limit": evaluate.response_tokens,
        "refusals": content_hash(builtin_rows("refusals")),
    }
    expected = Costs(trained=training_tokens(component.traits.budget(parameters), evaluate))
    return Node(f"{name}, seed {seed}", "defense", tuple(parents), depends, seed, run, expected)


def _look_node(context: StudyContext, name: str, hardened: Node | None, seed: int) -> Node:
    """Measure a model before any attack."""
    evaluate = context.study.evaluate
    shipped = hardened is None

    def run(folder: Path) -> Outcome:
        source = str(node_folder(context.run, hardened) / "checkpoint") if hardened else context.study.model
        with context.model(source) as loaded:
            observer = Observer(loaded, context.threat, evaluate)
            # The model as shipped is a landmark, not a contestant: a curve's worth of prompts is enough.
            prompts = evaluate.curve_prompts if shipped else evaluate.prompts
            observer.before_attack(context.harmless, evaluation=prompts, dev=0 if shipped else evaluate.dev_prompts)
            observer.write(folder)
        return Outcome(observer.costs)

    depends = {"model": context.fingerprint, **observation_key(context)}
    asked = evaluate.prompts + evaluate.dev_prompts + evaluate.harmless
    expected = Costs(0, asked * evaluate.response_tokens * 3 // 4, capability_tokens(evaluate))
    parents = (hardened,) if hardened else ()
    label = f"{name}: before attack" + ("" if shipped else f", seed {seed}")
    return Node(
        label, "look", parents, depends, seed, run, expected, {"defense": name, "attack": "", "malicious": False}
    )


def _attack_node(context: StudyContext, name: str, attack: str, parents: tuple[Node, Node], seed: int) -> Node:
    """One attack on one model; its step 0 is what was seen of the model before any attack."""
    hardened, answers = parents
    spec, evaluate = context.study.attacks[attack], context.study.evaluate
    component = ATTACKS.get(spec.attack)
    parameters = component.parse(spec.parameters, f"attack {attack}")
    budget, malicious = component.traits.budget(parameters), component.traits.malicious
    context.check_shots(attack, budget)
    steps = budget.steps or 1
    at_steps, capability_at = evaluate.measured_at(steps), evaluate.capability_measured_at(steps)
    if not malicious:  # what it did is looked at once, when it is done
        at_steps = capability_at = (steps,)
    curve = evaluate.curve_prompts
    task = component.traits.task(parameters)
    items = benign_task(task, seed) if task else ([], [])

    def run(folder: Path) -> Outcome:
        with context.model(str(node_folder(context.run, hardened) / "checkpoint")) as loaded:
            observer = Observer(loaded, context.threat, evaluate, current_block().folder)

            def hook(step: int) -> None:
                def look(seen: Observer) -> None:
                    seen.ask(step, curve, evaluate.dev_prompts if malicious else 0)
                    if step in capability_at:
                        seen.capability(step)
                    if task:
                        seen.benign_task(step, task, items[1])

                observer.once(step, look)

            data = context.attack_data(node_folder(context.run, answers), observer, at_steps, hook)
            done = component.run(loaded, data, parameters, seed)
            observer.write(folder)  # the attacked weights themselves are not kept
        costs = observer.costs + Costs(trained=done.tokens_trained)
        return Outcome(costs, notes=done.notes, facts={"samples": done.samples})

    depends = {
        **observation_key(context),
        "attack": component_key(component, parameters.model_dump(mode="json")),
        "at_steps": at_steps,
        "task": content_hash(items) if task else "",
        "uses": {name: uses_key(context, name) for name in component.traits.uses},
        "capability_at": capability_at,
    }
    asked = len(at_steps) * (curve + (evaluate.dev_prompts if malicious else 0))
    expected = Costs(
        training_tokens(budget, evaluate) * (100 if malicious else 72) // 100,
        asked * evaluate.response_tokens * 9 // 10,
        len(capability_at) * capability_tokens(evaluate),
    )
    label = f"{name} under {attack}, seed {seed}"
    about = {"defense": name, "attack": attack, "malicious": malicious, "has_steps": budget.trains}
    return Node(label, "attack", parents, depends, seed, run, expected, about)


def _judge_node(context: StudyContext, observed: Node, calibration: Node) -> Node:
    def run(folder: Path) -> Outcome:
        responses = read_rows(node_folder(context.run, observed) / "responses.parquet", Response)
        rows, scored = context.judging.verdicts(responses, read_thresholds(node_folder(context.run, calibration)))
        write_rows(folder / "scores.parquet", VerdictRow, rows)
        return Outcome(Costs(scored=scored))

    tokens = 0
    if context.judging.traits.needs_reference:
        tokens = judging_tokens(observed.expected.generated, context.study.evaluate)
    expected = Costs(scored=tokens if observed.kind == "attack" else tokens // 2)
    parents = (observed, calibration)
    return Node(f"judge {observed.label}", "judge", parents, judging_key(context), 0, run, expected)
