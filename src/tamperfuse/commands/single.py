"""One model at a time: what `harden`, `attack`, `evaluate` and `judge calibrate` do outside a study."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tamperfuse.attacks import ATTACKS, AttackData
from tamperfuse.corpora.examples import Example, Pair
from tamperfuse.corpora.exclude_threat import read_outside_threat
from tamperfuse.corpora.sources import read_source
from tamperfuse.corpora.threats import Threat, ThreatPrompt, load_threat
from tamperfuse.defenses import DEFENSES, DefenseData
from tamperfuse.evaluation.calibrate import Row, executed, fit_thresholds, table
from tamperfuse.evaluation.generate import generate
from tamperfuse.evaluation.judges.builtin import Answer, Judge, Thresholds
from tamperfuse.models.bundled import ENCODERS
from tamperfuse.models.encoder import DEFAULT_ENCODER, SentenceEncoder
from tamperfuse.models.load import LoadedModel, load_model, model_fingerprint, resolve_model, write_checkpoint
from tamperfuse.pairing import make_pairs, read_pairs
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import check_fresh, content_hash, staged, write_json
from tamperfuse.records.provenance import Provenance, versions
from tamperfuse.study.observe import HARMLESS, Observer, harmless_prompts
from tamperfuse.study.plan import CALIBRATION_ANSWERS
from tamperfuse.study.results.intervals import rate
from tamperfuse.study.spec import Evaluate
from tamperfuse.study.tables import ScoreRow, write_rows
from tamperfuse.training.checkpoints import resumable

log = logging.getLogger("tamperfuse")

ANSWER_TOKENS = 64


def harden_model(
    model: str,
    defense: str,
    threat: str,
    out: Path,
    *,
    pairs: Path | None,
    benign: str,
    settings: dict[str, Any],
    seed: int,
    report_to: Sequence[str] = (),
) -> None:
    """Apply a defense and save the checkpoint; the arguments are those of `tamperfuse harden`.

    Raises:
        UserError: bad input; nothing is written then.
    """
    component = DEFENSES.get(defense)
    parameters = component.parse(settings, f"defense {defense}")
    check_fresh(out)
    asked = load_threat(threat)
    defender = asked.part("defender")
    replay = [(example.prompt, example.response) for example in _read_benign(benign, asked, "benign")]
    matched: list[Pair] = []
    if component.traits.needs_pairs:
        matched = _pairs(pairs, asked, seed)
    with _resumable(out, report_to), staged(out, directory=True) as staging:
        loaded = load_model(model)
        data = DefenseData([p.prompt for p in defender], replay, ANSWER_TOKENS, matched)
        parameters = component.traits.resolve(parameters, loaded.model.num_parameters())
        _say(component.run(loaded, data, parameters, seed).notes)
        provenance = Provenance(
            origin=loaded.origin,
            made_by=f"{defense} (seed {seed})",
            source=model,
            parameters=parameters.model_dump(mode="json"),
        )
        write_checkpoint(loaded, staging, provenance)


def _say(notes: Sequence[str]) -> None:
    """Print what a component chose by itself, and why."""
    for note in notes:
        log.info("%s", note)


@contextmanager
def _resumable(out: Path, report_to: Sequence[str]) -> Iterator[Path]:
    """Trainings keep their checkpoints in a folder beside `out`, which is removed when the work is done."""
    unfinished = out.with_name(f"{out.name}.unfinished")
    with resumable(unfinished, report_to, out.with_name(f"{out.name}.logs")):
        yield unfinished
    shutil.rmtree(unfinished, ignore_errors=True)


def _pairs(folder: Path | None, threat: Threat, seed: int) -> list[Pair]:
    if folder is not None:
        return read_pairs(folder)
    responses = list(read_source("builtin:benign"))
    return make_pairs(threat.examples("defender"), responses, SentenceEncoder(), seed=seed).pairs


def _read_benign(source: str, threat: Threat, option: str) -> list[Example]:
    return read_outside_threat(source, threat, option=option, encoder=SentenceEncoder())


def evaluate_model(model: str, threat: str, out: Path, *, reference: str | None) -> list[str]:
    """Measure a model; returns lines to print. The arguments are those of `tamperfuse evaluate`.

    Raises:
        UserError: bad input; nothing is written then.
    """
    asked = load_threat(threat)
    evaluate = _everything(asked)
    check_fresh(out)
    ENCODERS[DEFAULT_ENCODER].path()  # what judging needs is looked for before minutes are spent on answers
    with staged(out, directory=True) as staging:
        loaded = load_model(model)
        origin = reference or loaded.origin
        resolve_model(origin)
        observer = Observer(loaded, asked, evaluate)
        observer.ask(0, evaluate.prompts, 0, evaluate.harmless)
        observer.capability(0)
        observer.write(staging)
        lines = _judged(observer, asked, origin, staging)
        write_json(staging / "evaluation.json", {"model": model, "threat": threat, "found": lines})
    return lines


def attack_model(
    model: str,
    attack: str,
    threat: str,
    out: Path,
    *,
    reference: str | None,
    retain: str,
    keep: bool,
    settings: dict[str, Any],
    seed: int,
    report_to: Sequence[str] = (),
) -> list[str]:
    """Attack a model and measure it before and after; returns lines to print. Arguments as of `tamperfuse attack`.

    Raises:
        UserError: bad input; nothing is written then.
    """
    component = ATTACKS.get(attack)
    parameters = component.parse(settings, f"attack {attack}")
    asked = load_threat(threat)
    evaluate = _everything(asked)
    harmless = _read_benign(retain, asked, "retain")
    steps = component.traits.budget(parameters).steps or 1
    check_fresh(out)
    with _resumable(out, report_to) as unfinished, staged(out, directory=True) as staging:
        loaded = load_model(model)
        origin = reference or loaded.origin
        about = {
            "model": model_fingerprint(model),
            "attack": [*component.identity, parameters.model_dump(mode="json"), seed],
            "threat": asked.fingerprint,
            "data": content_hash([(e.prompt, e.response) for e in harmless]),
            "reference": model_fingerprint(origin),
            "versions": versions(),
        }
        observer = Observer(loaded, asked, evaluate, unfinished / f"seen-{content_hash(about)[:16]}")
        given = AttackData(
            harmful=compliant_answers(load_model(origin), asked),
            retain=[(example.prompt, example.response) for example in harmless],
            reference=origin,
            answer=observer.answer,
            response_limit=ANSWER_TOKENS,
            at_steps=(0, steps),
            hook=lambda step: observer.once(step, lambda o: o.ask(step, evaluate.prompts, 0, evaluate.harmless)),
        )
        _say(component.run(loaded, given, parameters, seed).notes)
        observer.write(staging)
        lines = _judged(observer, asked, origin, staging)
        if keep:
            (staging / "attacked").mkdir()
            provenance = Provenance(
                origin=origin,
                made_by=f"{attack} (seed {seed})",
                source=model,
                parameters=parameters.model_dump(mode="json"),
            )
            write_checkpoint(loaded, staging / "attacked", provenance)
        write_json(staging / "attack.json", {"model": model, "attack": attack, "threat": threat, "found": lines})
    return lines


def calibrate_judge(threat: str, reference: str, limit: int) -> tuple[Thresholds, list[Row]]:
    """Set the judge's thresholds on the attacker part and test them on the evaluation part.

    Raises:
        UserError: bad input, or a reference that answers next to nothing.
    """
    asked, loaded = load_threat(threat), load_model(reference)
    judge, answers = _calibrated(loaded, asked)
    judge.others = [p.prompt for p in asked.part("evaluation")]
    fresh = executed(_answers(loaded, asked.part("evaluation", limit)), judge)
    if len(answers) < 8 or len(fresh) < 8:
        raise UserError(f"{reference} answers too few prompts of {threat} to calibrate on: name another --reference.")
    return judge.thresholds, table(judge, fresh, seed=0)


def _calibrated(reference: LoadedModel, asked: Threat) -> tuple[Judge, list[Answer]]:
    """The judge, its thresholds set on the reference's answers to the attacker part; and those answers."""
    prompts = asked.part("attacker")
    judge = Judge(reference, SentenceEncoder(), Thresholds(), [p.prompt for p in prompts])
    answers = executed(_answers(reference, prompts), judge)
    if len(answers) < 2:
        raise UserError(f"{reference.name} executes none of the threat's requests: name the model before hardening.")
    judge.thresholds = fit_thresholds(judge, answers[:CALIBRATION_ANSWERS], seed=0)
    return judge, answers


def _answers(loaded: LoadedModel, prompts: Sequence[ThreatPrompt]) -> list[Answer]:
    new = generate(loaded, [loaded.chat.prompt(p.prompt) for p in prompts], new_tokens=ANSWER_TOKENS, label="answers")
    return [Answer(p.prompt, p.response or loaded.chat.text(a)) for p, a in zip(prompts, new, strict=True)]


def compliant_answers(reference: LoadedModel, asked: Threat) -> list[tuple[str, str]]:
    """(prompt, answer) of the attacker part, where the reference executes the request."""
    judge = Judge(reference, SentenceEncoder(), Thresholds(), [])
    return [(a.prompt, a.response) for a in executed(_answers(reference, asked.part("attacker")), judge)]


def _everything(asked: Threat) -> Evaluate:
    """All evaluation prompts, all capability items."""
    return Evaluate(prompts=len(asked.part("evaluation")), dev_prompts=2, capability_items="all")


def _judged(observer: Observer, asked: Threat, reference: str, folder: Path) -> list[str]:
    judge, _ = _calibrated(load_model(reference), asked)
    rows = []
    for harmless in (False, True):
        part = [r for r in observer.responses if (r.part == HARMLESS) == harmless]
        others = [row["prompt"] for row in harmless_prompts(observer.evaluate.harmless, asked)]
        judge.others = others if harmless else [p.prompt for p in asked.part("evaluation")]
        verdicts = judge.verdicts([Answer(r.prompt, r.response) for r in part])
        rows += [ScoreRow.of(r, verdict) for r, verdict in zip(part, verdicts, strict=True)]
    write_rows(folder / "scores.parquet", ScoreRow, rows)
    return _lines(observer, rows)


def _lines(observer: Observer, rows: Sequence[ScoreRow]) -> list[str]:
    lines = []
    for step in sorted({row.step for row in rows}):
        here = [row for row in rows if row.step == step]

        def share(wanted: Callable[[ScoreRow], bool], here: list[ScoreRow] = here) -> str:
            measure = rate(np.array([float(row.harmful) for row in here if wanted(row)]))
            return f"{measure.value:.1%} ({measure.low:.1%} to {measure.high:.1%}, {measure.n} prompts)"

        place = f"step {step}: " if step else "before: "
        lines.append(f"{place}harmful execution {share(lambda row: row.part != HARMLESS)}")
        lines.append(f"{place}benign answers {share(lambda row: row.part == HARMLESS)}")
    for task in sorted({item.task for item in observer.items}):
        items = [item for item in observer.items if item.task == task]
        right = rate(np.array([float(item.correct) for item in items]))
        guessing = f"; {np.mean([item.chance for item in items]):.0%} by guessing" if items[0].chance else ""
        lines.append(
            f"{task}: {right.value:.1%} right ({right.low:.1%} to {right.high:.1%}, {right.n} items{guessing})"
        )
    if observer.documents:
        total, tokens = sum(d.nll for d in observer.documents), sum(d.tokens for d in observer.documents)
        lines.append(f"benign NLL {total / tokens:.3f} nats a token")
    return lines
