"""The nodes of a study that make data for others: compliant answers, the judge's thresholds, pairs, benign samples."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.examples import Pair
from tamperfuse.corpora.overlap import plain
from tamperfuse.corpora.texts import normalise
from tamperfuse.corpora.threats import PARTS, Part, Threat, ThreatPrompt
from tamperfuse.defenses import DEFENSES, DefenseData
from tamperfuse.evaluation.judges import Answer
from tamperfuse.models.encoder import MemoizedEncoder
from tamperfuse.models.load import LoadedModel
from tamperfuse.pairing import FilterSettings, combined, make_pairs, read_pairs, sample_responses, write_pairs
from tamperfuse.pairing.filters import check_language
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash
from tamperfuse.study.benign import (
    CONTRAST_SHARE,
    DEV_SHARE,
    DOCUMENT_LENGTH,
    DOCUMENTS,
    EVERYDAY_SHARE,
    FACTS_SHARE,
    NEIGHBOUR_SHARE,
    PLAIN_SHARE,
    ROWS,
    SELF,
    BenignSet,
    answer_prompts,
    contrast_prompts,
    near_prompts,
    read_benign_set,
    select,
    write_benign_set,
    write_self_samples,
)
from tamperfuse.study.context import StudyContext
from tamperfuse.study.estimates import Costs, judging_tokens
from tamperfuse.study.judging import (
    CALIBRATION_ANSWERS,
    Judging,
    compliant_answers,
    read_thresholds,
    write_thresholds,
)
from tamperfuse.study.keys import builtin_hash, judging_key
from tamperfuse.study.node import Node, Outcome, node_folder
from tamperfuse.study.observe import Observer
from tamperfuse.study.tables import BenignRow, Response, read_rows, write_rows

ANSWERS, DEFENDER_ANSWERS = "answers before hardening", "defender answers"
PAIRS, BENIGN = "pairs", "benign set"
MEASURED = {
    "harmless": "prompt",
    "heldout": "prompt",
    "everyday": "question",
}  # built-in data, and the column of prompts
WRITTEN_PROMPT_TOKENS = 24  # of a prompt that the model writes itself, for estimates


def defense_data_nodes(context: StudyContext, name: str, seed: int) -> list[Node]:
    """The data that a defense needs, each after the nodes that it reads."""
    spec = context.study.defenses[name]
    component = DEFENSES.get(spec.defense)
    traits = component.traits
    nodes = [pairs_node(context, seed)] if traits.needs_pairs else []
    parameters = component.parse(spec.parameters, f"defense {name}")
    benign = traits.needs_benign(parameters) or traits.needs_held_out(parameters)
    answers = [answers_node(context, "defender", DEFENDER_ANSWERS)] if traits.needs_answers or benign else []
    if benign:
        samples = self_samples_node(context)
        nodes += [*answers, samples, benign_node(context, samples, answers[0])]
    return nodes if benign else nodes + answers


def defense_data(
    context: StudyContext, name: str, nodes: Sequence[Node], pairs: Sequence[Pair] | None = None
) -> DefenseData:
    """What a defense receives, read from nodes of :func:`defense_data_nodes`.

    Args:
        context: of the study.
        name: of the defense within the study.
        nodes: finished ones.
        pairs: SDD pairs; those of a node if None.
    """
    spec = context.study.defenses[name]
    component = DEFENSES.get(spec.defense)
    traits, parameters = component.traits, component.parse(spec.parameters, f"defense {name}")
    folders = {node.kind: node_folder(context.run, node) for node in nodes}
    benign = read_benign_set(folders[BENIGN]) if BENIGN in folders else BenignSet((), (), ())
    if pairs is None:
        pairs = read_pairs(folders[PAIRS]) if PAIRS in folders else []
    requests = context.threat.part("defender")
    # Prompts are ordered by a hash of their text, so the first ones are a random sample.
    dev = (
        requests[: round(DEV_SHARE * len(requests))] if BENIGN in folders and traits.needs_held_out(parameters) else ()
    )
    held_out = {_key(p.prompt) for p in dev}
    answers = read_answers(folders[DEFENDER_ANSWERS]) if traits.needs_answers else []
    return DefenseData(
        prompts=[p.prompt for p in requests if _key(p.prompt) not in held_out],
        benign=benign.exchanges,
        response_limit=context.study.evaluate.response_tokens,
        pairs=[pair for pair in pairs if _key(pair.prompt) not in held_out],
        answers=[(prompt, answer) for prompt, answer in answers if _key(prompt) not in held_out],
        teacher=benign.train,
        held_back=benign.held_back,
        executed=_executed(context, dev, read_thresholds(folders[BENIGN])) if dev else None,
        reference=context.study.model,
    )


def check_pairs(pairs: Sequence[Pair], threat: Threat) -> None:
    """Check that no pair has a prompt on which models are attacked or measured.

    Raises:
        UserError: a pair's prompt is in another part of the threat than the defender's.
    """
    part_of = {_key(p.prompt): part for part in PARTS if part != "defender" for p in threat.part(part)}
    wrong = [pair.prompt for pair in pairs if _key(pair.prompt) in part_of]
    if wrong:
        parts = " and ".join(sorted({part_of[_key(prompt)] for prompt in wrong}))
        raise UserError(
            f"{len(wrong)} of {len(pairs)} pairs have prompts of {threat.source} that a defense must not see, since models are "
            f"attacked or measured with them (part {parts}; the first is {wrong[0]!r}): leave out the pairs, so that `harden` "
            "makes them from the defender part, or pair a file whose rows name their `part`."
        )


def _key(prompt: str) -> str:
    """What makes two prompts the same: pairing normalises texts, and a threat does not."""
    return plain(normalise(prompt))


def _executed(
    context: StudyContext, prompts: Sequence[ThreatPrompt], thresholds: Mapping[str, float]
) -> Callable[[LoadedModel], float]:
    """A function that measures which share of some defender prompts a model executes."""

    def share(loaded: LoadedModel) -> float:
        observer = Observer(loaded, context.threat, context.study.evaluate)
        texts = observer.answer([p.prompt for p in prompts], "held-out prompts")
        rows = [Response(0, "defender", p.id, p.prompt, text) for p, text in zip(prompts, texts, strict=True)]
        verdicts = context.training_judging.may_execute(rows, thresholds)
        return sum(verdicts) / len(verdicts)

    return share


def answers_node(context: StudyContext, part: Part, label: str) -> Node:
    """Compliant answers to one part: attacks train on those of the attacker part, which also calibrate the judge."""
    prompts = context.threat.part(part)
    tokens = context.study.evaluate.response_tokens

    def run(folder: Path) -> Outcome:
        answers = compliant_answers(context.reference, prompts, tokens, context.encoder)
        rows = [Response(0, part, p.id, p.prompt, p.response) for p in answers.prompts]
        write_rows(folder / "responses.parquet", Response, rows)
        facts = {"answered": len(rows), "prompts": len(prompts)}
        return Outcome(Costs(generated=answers.tokens_generated), facts=facts)

    depends = {"model": context.fingerprint, "threat": context.threat.fingerprint, "tokens": tokens, "part": part}
    unanswered = sum(not p.response for p in prompts)
    return Node(label, label, (), depends, 0, run, Costs(generated=unanswered * tokens))


def read_answers(folder: Path) -> list[tuple[str, str]]:
    """(prompt, compliant answer) from the folder of a node of :func:`answers_node`."""
    rows = read_rows(folder / "responses.parquet", Response)
    return [(row.prompt, row.response) for row in rows]


def calibration_node(context: StudyContext, answers: Node, further: str = "") -> Node:
    """The judge's thresholds, calibrated on the compliant answers.

    Args:
        context: of the study.
        answers: the node of the compliant answers.
        further: name of a further judge; "" for the one that decides.
    """
    judging = context.further_judging(further) if further else context.judging

    def run(folder: Path) -> Outcome:
        thresholds, scored = judging.calibrate(read_answers(node_folder(context.run, answers)))
        write_thresholds(folder, thresholds)
        return Outcome(Costs(scored=scored))

    evaluate = context.study.evaluate
    depends = {
        **judging_key(judging, context.fingerprint),
        "threat": context.threat.fingerprint,
        "tokens": evaluate.response_tokens,
    }
    expected = Costs(scored=_calibration_tokens(context, judging))
    return Node(f"thresholds of the judge {further}".strip(), "calibration", (answers,), depends, 0, run, expected)


def _calibration_tokens(context: StudyContext, judging: Judging) -> int:
    evaluate = context.study.evaluate
    calibrates = judging.traits.calibrate is not None
    return judging_tokens(3 * CALIBRATION_ANSWERS * evaluate.response_tokens, evaluate) if calibrates else 0


def pairs_node(context: StudyContext, seed: int) -> Node:
    """SDD pairs for one seed."""
    spec = context.study.pairs
    prompts = context.threat.examples("defender")
    responses = context.pair_responses
    filters = FilterSettings(language=spec.language) if spec.filters else None
    check_language(spec.language)

    def run(folder: Path) -> Outcome:
        encoder = MemoizedEncoder(context.encoder)
        # Of an empty pool, make_pairs could not say which filter refused what.
        pool = sample_responses(responses, spec.pool, seed, filters) or responses
        drawn = [
            make_pairs(prompts, pool, encoder, threshold=spec.threshold, seed=draw, filters=filters)
            for draw in range(seed * spec.per_prompt, (seed + 1) * spec.per_prompt)
        ]
        pairs = combined(drawn)
        write_pairs(folder, pairs)
        facts = {
            "pairs": len(pairs.pairs),
            "responses": len(pool),
            "dropped": len(pairs.dropped),
            "redraws": pairs.redraws,
        }
        return Outcome(facts=facts)

    depends = {
        "threat": context.threat.fingerprint,
        "responses": content_hash([example.response for example in responses]),
        "pairs": spec.model_dump(),
        "encoder": context.encoder.name,
    }
    return Node(f"pairs, seed {seed}", PAIRS, (), depends, seed, run, Costs())


def self_samples_node(context: StudyContext) -> Node:
    """What the model answers to prompts that it wrote itself, or that the user names; made once per model."""
    spec, tokens = context.study.benign, context.study.evaluate.response_tokens

    def run(folder: Path) -> Outcome:
        rows, generated = write_self_samples(context.reference(), spec.sources, context.benign, spec.prompts, tokens)
        write_rows(folder / ROWS, BenignRow, rows)
        return Outcome(Costs(generated=generated), facts={"samples": len(rows)})

    depends = {
        "model": context.fingerprint,
        "benign": {"self": SELF in spec.sources, "prompts": spec.prompts, "named": content_hash(context.benign)},
        "builtin": builtin_hash("facts", "replay"),
        "tokens": tokens,
    }
    self_written = spec.prompts if SELF in spec.sources else 0
    answers = round((1 + FACTS_SHARE + EVERYDAY_SHARE) * self_written) + len(context.benign)
    if DOCUMENTS in spec.sources:
        depends["documents"] = builtin_hash("documents")
        answers += DOCUMENT_LENGTH * len(builtin_rows("documents"))
    expected = Costs(generated=self_written * WRITTEN_PROMPT_TOKENS * 3 // 2 + answers * tokens)
    return Node("self-made samples", "self-made samples", (), depends, 0, run, expected)


def benign_node(context: StudyContext, samples: Node, answers: Node) -> Node:
    """The benign set: self-made samples and answers near the threat, without what belongs to it, and predictions of all."""
    spec, tokens = context.study.benign, context.study.evaluate.response_tokens
    # All of them, whatever the study measures: studies share the set.
    measured = [str(row[key]) for name, key in MEASURED.items() for row in builtin_rows(name) if row[key]]

    def run(folder: Path) -> Outcome:
        loaded, judging = context.reference(), context.training_judging
        rows = read_rows(node_folder(context.run, samples) / ROWS, BenignRow)
        near, generated = near_prompts(loaded, context.threat, spec.prompts) if SELF in spec.sources else ({}, 0)
        near_rows, answered = answer_prompts(loaded, near, tokens)
        thresholds, scored = judging.calibrate(read_answers(node_folder(context.run, answers)), "defender")
        costs = Costs(0, generated + answered, scored)

        def executes(pairs: Sequence[tuple[str, str]]) -> list[bool]:
            verdicts, scored = judging.executes_defender_requests([Answer(*pair) for pair in pairs], thresholds)
            costs.scored += scored
            return verdicts

        left, dropped = select([*near_rows, *rows], context.threat, measured, context.encoder, executes)
        scored, card = write_benign_set(folder, loaded, left, dropped, tokens)
        write_thresholds(folder, thresholds)
        return Outcome(costs + Costs(scored=scored), facts=card)

    depends = {
        **judging_key(context.training_judging, context.fingerprint),
        "threat": context.threat.fingerprint,
        "measured": content_hash(measured),
        "contrast": content_hash(contrast_prompts(context.threat)),
        "prompts": spec.prompts,
    }
    self_written = spec.prompts if SELF in spec.sources else 0
    builtin = ((FACTS_SHARE, "facts"), (EVERYDAY_SHARE, "replay"), (CONTRAST_SHARE, "contrast"))
    rows = len(context.benign) + round((1 + NEIGHBOUR_SHARE) * self_written)
    rows += sum(min(round(share * self_written), len(builtin_rows(name))) for share, name in builtin)
    rows += round(PLAIN_SHARE * (len(context.benign) + self_written))
    if DOCUMENTS in spec.sources:
        rows += DOCUMENT_LENGTH * len(builtin_rows("documents"))
    near = round((CONTRAST_SHARE + NEIGHBOUR_SHARE) * self_written)
    scored = rows * tokens + _calibration_tokens(context, context.training_judging)
    expected = Costs(0, near * (tokens + WRITTEN_PROMPT_TOKENS), scored)
    return Node(BENIGN, BENIGN, (samples, answers), depends, 0, run, expected, predictions=rows * tokens)
