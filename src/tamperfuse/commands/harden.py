"""Apply a defense to one model: what `tamperfuse harden` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tamperfuse.commands.training import print_notes, resumable_beside, work_of
from tamperfuse.corpora.examples import Example, Pair
from tamperfuse.corpora.exclude_threat import read_outside_threat
from tamperfuse.corpora.sources import read_source
from tamperfuse.corpora.threats import Threat, load_threat
from tamperfuse.corpora.window import within_window
from tamperfuse.defenses import DEFENSES, DefenseData, DefenseResult
from tamperfuse.defenses.base import DefenseTraits
from tamperfuse.models.encoder import TextEncoder
from tamperfuse.models.load import LoadedModel, absolute_name, load_model, reference_name, write_checkpoint
from tamperfuse.pairing import make_pairs, read_pairs
from tamperfuse.records.files import check_fresh, output_folder
from tamperfuse.records.provenance import Provenance
from tamperfuse.records.registry import Component
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
    prompts = within_window(load_threat(threat, encoder), model, RESPONSE_TOKENS)
    replay = read_outside_threat(benign, prompts, option="benign", encoder=encoder)
    matched: Sequence[Pair] = ()
    if component.traits.needs_pairs:
        matched = read_pairs(pairs) if pairs is not None else default_pairs(prompts, encoder, seed)
    with resumable_beside(out, report_to, work_of(component, parameters, seed)), output_folder(out) as staging:
        loaded = load_model(model)
        parameters = apply_defense(loaded, component, parameters, prompts, pairs=matched, benign=replay, seed=seed)
        provenance = Provenance(
            origin=loaded.origin,
            made_by=f"{defense} (seed {seed})",
            source=absolute_name(model),
            parameters=parameters.model_dump(mode="json"),
        )
        write_checkpoint(loaded, staging, provenance)


def apply_defense(
    loaded: LoadedModel,
    component: Component[DefenseTraits, DefenseResult],
    parameters: Any,
    threat: Threat,
    *,
    pairs: Sequence[Pair],
    benign: Sequence[Example],
    seed: int,
) -> Any:
    """Apply a defense to a model, in place, and print its notes.

    Args:
        loaded: the model.
        component: the defense.
        parameters: of the defense, validated.
        threat: whose defender part the defense receives.
        pairs: SDD pairs, if the defense needs any.
        benign: samples to replay.
        seed: of the training.

    Returns:
        The resolved parameters.
    """
    answers: Sequence[tuple[str, str]] = ()
    if component.traits.needs_answers:
        origin = reference_name(loaded, None, "put the model back there, or write its new path into that file")
        answers = compliant_answers(lambda: load_model(origin), threat.part("defender"), RESPONSE_TOKENS).pairs
    resolved = component.traits.resolve(parameters, loaded.model.num_parameters())
    data = DefenseData(
        prompts=[prompt.prompt for prompt in threat.part("defender")],
        pairs=pairs,
        answers=answers,
        benign=[(example.prompt, example.response) for example in benign],
        response_limit=RESPONSE_TOKENS,
    )
    print_notes(component.run(loaded, data, resolved, seed).notes)
    return resolved


def default_pairs(threat: Threat, encoder: TextEncoder, seed: int) -> list[Pair]:
    """Pairs with the built-in responses, made as `tamperfuse pair` makes them by default."""
    responses = list(read_source("builtin:benign"))
    return make_pairs(threat.examples("defender"), responses, encoder, seed=seed).pairs
