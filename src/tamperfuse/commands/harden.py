"""Apply a defense to one model: what `tamperfuse harden` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tamperfuse.commands.training import print_notes, resumable_beside
from tamperfuse.corpora.examples import Pair
from tamperfuse.corpora.exclude_threat import read_outside_threat
from tamperfuse.corpora.sources import read_source
from tamperfuse.corpora.threats import Threat, load_threat
from tamperfuse.defenses import DEFENSES, DefenseData
from tamperfuse.models.encoder import TextEncoder
from tamperfuse.models.load import load_model, write_checkpoint
from tamperfuse.pairing import make_pairs, read_pairs
from tamperfuse.records.files import check_fresh, staged
from tamperfuse.records.provenance import Provenance
from tamperfuse.study.judging import compliant_answers, load_encoder
from tamperfuse.study.spec import RESPONSE_TOKENS


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
    """Apply a defense and save the checkpoint.

    Args:
        model: the model, as of :func:`load_model`.
        defense: name of the defense.
        threat: source of the threat, whose defender part the defense receives.
        out: folder to write; must not exist, or be empty.
        pairs: folder of `tamperfuse pair`; None to draw pairs from the built-in responses, if the defense needs any.
        benign: source of benign samples to replay.
        settings: parameters of the defense.
        seed: of pairs and training.
        report_to: trackers that trainings report to.

    Raises:
        UserError: bad input; nothing is written then.
    """
    component = DEFENSES.get(defense)
    parameters = component.parse(settings, f"defense {defense}")
    check_fresh(out)
    encoder = load_encoder()
    prompts = load_threat(threat, encoder)
    replay = read_outside_threat(benign, prompts, option="benign", encoder=encoder)
    matched: list[Pair] = []
    if component.traits.needs_pairs:
        matched = read_pairs(pairs) if pairs is not None else _pairs(prompts, encoder, seed)
    with resumable_beside(out, report_to), staged(out, directory=True) as staging:
        loaded = load_model(model)
        answers: list[tuple[str, str]] = []
        if component.traits.needs_answers:
            origin = loaded.origin
            answers = compliant_answers(lambda: load_model(origin), prompts.part("defender"), RESPONSE_TOKENS).pairs
        parameters = component.traits.resolve(parameters, loaded.model.num_parameters())
        data = DefenseData(
            prompts=[p.prompt for p in prompts.part("defender")],
            pairs=matched,
            answers=answers,
            benign=[(example.prompt, example.response) for example in replay],
            response_limit=RESPONSE_TOKENS,
        )
        print_notes(component.run(loaded, data, parameters, seed).notes)
        provenance = Provenance(
            origin=loaded.origin,
            made_by=f"{defense} (seed {seed})",
            source=model,
            parameters=parameters.model_dump(mode="json"),
        )
        write_checkpoint(loaded, staging, provenance)


def _pairs(threat: Threat, encoder: TextEncoder, seed: int) -> list[Pair]:
    """Pairs with the built-in responses, made as `tamperfuse pair` makes them by default."""
    responses = list(read_source("builtin:benign"))
    return make_pairs(threat.examples("defender"), responses, encoder, seed=seed).pairs
