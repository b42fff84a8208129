"""A study becomes nodes: what each one does, what it depends on, what it will cost."""

from collections.abc import Sequence
from pathlib import Path

from tamperfuse.attacks import ATTACKS
from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.sources import read_source
from tamperfuse.corpora.tasks import benign_task
from tamperfuse.corpora.threats import Part
from tamperfuse.defenses import DEFENSES, DefenseData
from tamperfuse.evaluation.calibrate import executed, fit_thresholds
from tamperfuse.evaluation.generate import generate
from tamperfuse.evaluation.judges.builtin import NAME as JUDGE
from tamperfuse.evaluation.judges.builtin import Answer, Thresholds
from tamperfuse.models.load import write_checkpoint
from tamperfuse.pairing import FilterSettings, make_pairs, read_pairs, write_pairs
from tamperfuse.pairing.filters import check_language
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash, write_json
from tamperfuse.records.provenance import Provenance
from tamperfuse.records.results import UNDEFENDED
from tamperfuse.study.context import StudyContext
from tamperfuse.study.estimates import Costs, capability_tokens, judging_tokens, training_tokens
from tamperfuse.study.keys import component_key, observation_key, uses_key
from tamperfuse.study.node import Node, Outcome, check_graph, node_folder
from tamperfuse.study.observe import Observer
from tamperfuse.study.search.node import Before, search_node
from tamperfuse.study.shared import judged
from tamperfuse.study.tables import Response, ScoreRow, read_rows, write_rows
from tamperfuse.training.checkpoints import current_block

SHIPPED = "as shipped"
DEFENDER_ANSWERS = "defender answers"
CALIBRATION_ANSWERS = 48


def build_nodes(context: StudyContext) -> list[Node]:
    """All nodes of a study, parents first."""
    answers = _answers_node(context)
    nodes = [answers]
    shipped = _look_node(context, SHIPPED, None, 0)
    nodes += [shipped, _judge_node(context, shipped, answers)]
    for seed in context.study.seeds:
        made: dict[str, Node] = {}
        looks: dict[str, Node] = {}
        for name in context.study.ordered_defenses():
            spec = context.study.defenses[name]
            parents = [made[spec.on]] if spec.on else []
            traits = DEFENSES.get(spec.defense).traits
            needed = [_pairs_node(context, seed)] if traits.needs_pairs else []
            needed += [_defender_answers_node(context)] if traits.needs_answers else []
            nodes += [node for node in needed if all(node.label != other.label for other in nodes)]
            parents += needed
            made[name] = _defense_node(context, name, parents, seed)
            look = _look_node(context, name, made[name], seed)
            looks[name] = look
            nodes += [made[name], look, _judge_node(context, look, answers)]
        for attack, asked in context.study.attacks.items():
            for name, hardened in made.items():
                if asked.search:
                    before = Before(hardened, answers, shipped, looks[UNDEFENDED])
                    nodes.append(search_node(context, name, attack, before, seed))
                    continue
                attacked = _attack_node(context, name, attack, (hardened, answers), seed)
                nodes += [attacked, _judge_node(context, attacked, answers)]
    check_graph(nodes)
    return nodes


def _answers_node(context: StudyContext) -> Node:
    prompts = context.threat.part("attacker")
    tokens = context.study.evaluate.response_tokens

    def run(folder: Path) -> Outcome:
        rows, generated = _compliant(context, "attacker")
        if len(rows) < 2:
            raise UserError(
                f"{context.study.model} answers {len(rows)} of the {len(prompts)} attacker prompts before hardening: use a "
                "model that executes the threat, or a threat with answers."
            )
        judge = context.judge(Thresholds(), [p.prompt for p in prompts])
        answers = [Answer(row.prompt, row.response) for row in rows]
        thresholds = fit_thresholds(judge, answers[:CALIBRATION_ANSWERS], seed=0)
        write_rows(folder / "responses.parquet", Response, rows)
        write_json(folder / "thresholds.json", thresholds.model_dump())
        costs = Costs(generated=generated, scored=judge.tokens_scored)
        return Outcome(costs, facts={"answered": len(rows), "prompts": len(prompts)})

    scored = judging_tokens((len(prompts) + 3 * CALIBRATION_ANSWERS) * tokens, context.study.evaluate)
    depends = {
        "model": context.fingerprint,
        "threat": context.threat.fingerprint,
        "tokens": tokens,
        "judge": [JUDGE, Thresholds().model_dump()],
    }
    return Node("answers before hardening", "answers", (), depends, 0, run, Costs(0, len(prompts) * tokens, scored))


def _defender_answers_node(context: StudyContext) -> Node:
    """Compliant answers to the defender prompts, for defenses that simulate an attacker."""
    prompts = context.threat.part("defender")
    tokens = context.study.evaluate.response_tokens

    def run(folder: Path) -> Outcome:
        rows, generated = _compliant(context, "defender")
        write_rows(folder / "responses.parquet", Response, rows)
        return Outcome(Costs(generated=generated), facts={"answered": len(rows), "prompts": len(prompts)})

    depends = {"model": context.fingerprint, "threat": context.threat.fingerprint, "tokens": tokens}
    return Node(DEFENDER_ANSWERS, DEFENDER_ANSWERS, (), depends, 0, run, Costs(generated=len(prompts) * tokens))


def _compliant(context: StudyContext, part: Part) -> tuple[list[Response], int]:
    """The threat's own answers to a part, or the reference model's that neither refuse nor loop; tokens generated."""
    prompts = context.threat.part(part)
    answers = {p.id: p.response for p in prompts if p.response}
    missing = [p for p in prompts if p.id not in answers]
    reference = context.reference()
    new = generate(
        reference,
        [reference.chat.prompt(p.prompt) for p in missing],
        new_tokens=context.study.evaluate.response_tokens,
        label=f"answers, {part} part",
    )
    answers |= {p.id: reference.chat.text(answer) for p, answer in zip(missing, new, strict=True)}
    judge = context.judge(Thresholds(), [p.prompt for p in prompts])
    compliant = set(executed([Answer(p.prompt, answers[p.id]) for p in prompts], judge))
    rows = [
        Response(0, part, p.id, p.prompt, answers[p.id])
        for p in prompts
        if Answer(p.prompt, answers[p.id]) in compliant
    ]
    return rows, sum(map(len, new))


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
            asked = evaluate.curve_prompts if shipped else evaluate.prompts
            observer.ask(0, asked, 0 if shipped else evaluate.dev_prompts, evaluate.harmless)
            observer.capability(0)
            observer.benign_nll(0)
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
                    seen.ask(step, curve, evaluate.dev_prompts if malicious else 0, 0)
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


def _judge_node(context: StudyContext, observed: Node, answers: Node) -> Node:
    def run(folder: Path) -> Outcome:
        responses = read_rows(node_folder(context.run, observed) / "responses.parquet", Response)
        rows, scored = judged(context, responses, node_folder(context.run, answers))
        write_rows(folder / "scores.parquet", ScoreRow, rows)
        return Outcome(Costs(scored=scored))

    depends = {"model": context.fingerprint, "judge": JUDGE, "encoder": "all-MiniLM-L6-v2"}
    tokens = judging_tokens(observed.expected.generated, context.study.evaluate)
    expected = Costs(scored=tokens if observed.kind == "attack" else tokens // 2)
    return Node(f"judge {observed.label}", "judge", (observed, answers), depends, 0, run, expected)
