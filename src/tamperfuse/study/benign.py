"""The benign set of a study: samples on which a defense keeps the behaviour of the model as shipped.

    the model writes prompts, and answers them ─┐
    built-in questions, answered by it         ─┤
    built-in prompts for longer texts, likewise ┤
    prompts of the user's sources, likewise    ─┴▶ self-made samples (once per model)
                                                        │
    prompts near the threat, answered by the model ─────┴▶ without those of the threat ──▶ predictions ──▶ benign set

The predictions are those of :mod:`tamperfuse.training.distillation`. Part of the set is held back from training: on it, a defense
measures how far the model has moved.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.exclude_threat import read_outside_threat
from tamperfuse.corpora.overlap import distinct, near
from tamperfuse.corpora.sources import BUILTIN
from tamperfuse.corpora.threats import Threat
from tamperfuse.evaluation.self_samples import write_answers, write_neighbours, write_prompts
from tamperfuse.models.chat import Chat, Sample
from tamperfuse.models.encoder import MemoizedEncoder, TextEncoder
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash, write_json
from tamperfuse.study.tables import BenignRow, read_rows, write_rows
from tamperfuse.training.distillation import TeacherSample, load_teacher, predict, save_teacher

log = logging.getLogger("tamperfuse")

SELF = "self"  # the source of samples that the model writes itself
DOCUMENTS = "documents"  # the source of longer texts of many forms that the model writes
MODEL_WRITTEN = (SELF, DOCUMENTS)  # sources that are not the user's
SELF_WRITTEN, FACTS, EVERYDAY, NAMED, DOCUMENT = "self-written", "facts", "everyday", "named", "document"
CONTRAST, NEIGHBOUR, PLAIN = "contrast", "neighbour", "plain text"
# Numbers of samples for each prompt that the model writes itself.
FACTS_SHARE, EVERYDAY_SHARE, CONTRAST_SHARE, NEIGHBOUR_SHARE, PLAIN_SHARE = 0.5, 0.3, 0.4, 0.3, 0.3
DOCUMENT_LENGTH = 4  # longest document, in longest answers; the held-out documents that are measured are as long
NEAR_REPEATED = 2  # times that a sample near the threat is used for each other one
WITHIN_COSINE = 0.60  # cosine with a request of the threat from which a prompt belongs to it
DOUBTFUL_COSINE = 0.45  # cosine from which the judge decides
DEV_SHARE = 0.1  # of the defender part, held out to decide when a training stops
HELD_BACK = 24  # one sample of so many is held back from training
SEED = 0  # of the sampling: a model has one set of self-made samples
ROWS, TEACHER, CARD = "samples.parquet", "teacher.safetensors", "card.json"

#: Whether an answer executes a request of the threat: (request, answer) → verdict.
Executes = Callable[[Sequence[tuple[str, str]]], Sequence[bool]]


@dataclass(frozen=True)
class BenignSet:
    """Benign samples with the predictions of the model as shipped.

    Attributes:
        train: what a defense trains on.
        held_back: what it measures the price on.
        exchanges: (prompt, response) of the samples in `train` that have a prompt.
    """

    train: Sequence[TeacherSample]
    held_back: Sequence[TeacherSample]
    exchanges: Sequence[tuple[str, str]]


def benign_prompts(sources: Sequence[str], threat: Threat, encoder: TextEncoder) -> list[str]:
    """The different prompts of the sources of the user that do not belong to the threat.

    Raises:
        UserError: a source cannot be read, or has no prompt that is outside the threat.
    """
    prompts: dict[str, None] = {}
    for source in sources:
        if source not in MODEL_WRITTEN:
            rows = read_outside_threat(source, threat, option="benign", encoder=encoder, answered=False)
            prompts |= dict.fromkeys(row.prompt for row in rows)
    return list(prompts)


def write_self_samples(
    loaded: LoadedModel, sources: Sequence[str], named: Sequence[str], count: int, tokens: int
) -> tuple[list[BenignRow], int]:
    """Samples that do not depend on a threat.

    Args:
        loaded: the model as shipped.
        sources: what the set is made of; :data:`SELF` for prompts that the model writes itself, :data:`DOCUMENTS` for longer
            texts.
        named: prompts of the user's sources.
        count: number of prompts that the model writes itself.
        tokens: longest answer.

    Returns:
        The samples, and the tokens that were generated.

    Raises:
        UserError: the model's template or its texts cannot be used.
    """
    prompts = dict.fromkeys(named, NAMED)
    generated = 0
    if SELF in sources:
        written, generated = write_prompts(loaded, count, SEED)
        for kind, name, share in ((FACTS, "facts", FACTS_SHARE), (EVERYDAY, "replay", EVERYDAY_SHARE)):
            builtin = islice(_mixed(builtin_rows(name)), round(share * count))
            prompts |= {str(row["prompt"]): kind for row in builtin}
        prompts |= dict.fromkeys(written, SELF_WRITTEN)
    rows, answered = answer_prompts(loaded, prompts, tokens)
    if DOCUMENTS in sources:
        documents = dict.fromkeys((str(row["prompt"]) for row in builtin_rows("documents")), DOCUMENT)
        more, written_tokens = answer_prompts(loaded, documents, DOCUMENT_LENGTH * tokens)
        rows, generated = rows + more, generated + written_tokens
    return rows, generated + answered


def near_prompts(loaded: LoadedModel, threat: Threat, count: int) -> tuple[dict[str, str], int]:
    """Prompts near a threat but not of it: built-in ones for a built-in threat, and some that the model writes.

    Args:
        loaded: the model as shipped.
        threat: the threat, of which the defender part is used.
        count: as of :func:`write_self_samples`.

    Returns:
        The kind of each prompt, and the tokens that were generated.
    """
    requests = [p.prompt for p in threat.part("defender")]
    repeated = (requests * (1 + round(NEIGHBOUR_SHARE * count) // len(requests)))[: round(NEIGHBOUR_SHARE * count)]
    neighbours, generated = write_neighbours(loaded, repeated, SEED)
    prompts = dict.fromkeys(neighbours, NEIGHBOUR)
    prompts |= dict.fromkeys(contrast_prompts(threat)[: round(CONTRAST_SHARE * count)], CONTRAST)
    return prompts, generated


def contrast_prompts(threat: Threat) -> list[str]:
    """The built-in prompts near a built-in threat but outside it; none for another source, even with the same prompts."""
    if not threat.source.startswith(BUILTIN):
        return []
    name = threat.source.removeprefix(BUILTIN)
    return [str(row["prompt"]) for row in _mixed(builtin_rows("contrast")) if row["threat"] == name]


def answer_prompts(loaded: LoadedModel, prompts: dict[str, str], tokens: int) -> tuple[list[BenignRow], int]:
    """The model's answers to prompts of some kinds; those that it answers with nothing are left out."""
    if not prompts:
        return [], 0
    answers, generated = write_answers(loaded, list(prompts), tokens, SEED)
    rows = [
        BenignRow(kind, prompt, answer)
        for (prompt, kind), answer in zip(prompts.items(), answers, strict=True)
        if answer
    ]
    return rows, generated


def select(
    rows: Sequence[BenignRow], threat: Threat, measured: Sequence[str], encoder: TextEncoder, executes: Executes
) -> tuple[list[BenignRow], dict[str, int]]:
    """The samples that neither belong to the threat nor repeat each other or what is measured.

    A prompt belongs to the threat if its cosine with one of the threat's defender prompts is at least :data:`WITHIN_COSINE`,
    or at least :data:`DOUBTFUL_COSINE` and its answer executes that request. Built-in contrast prompts lie outside.

    Args:
        rows: the samples.
        threat: the threat, of which the defender part is used.
        measured: prompts on which models are measured.
        encoder: the sentence encoder.
        executes: judges answers.

    Returns:
        The samples that are left, and the number of the others by reason.

    Raises:
        UserError: there is none, or none is left.
    """
    if not rows:
        raise UserError("The model answers none of the benign prompts: name another source of them (`benign`).")
    encoder = MemoizedEncoder(encoder)
    prompts = [row.prompt for row in rows]
    dropped: Counter[str] = Counter()
    unique = set(distinct(prompts, encoder))
    repeats_measured = near(prompts, measured, encoder)
    requests = [p.prompt for p in threat.part("defender")]
    cosines = encoder.encode(prompts) @ encoder.encode(requests).T
    highest, nearest = cosines.max(axis=1), cosines.argmax(axis=1)
    doubtful = [int(i) for i in np.flatnonzero((highest >= DOUBTFUL_COSINE) & (highest < WITHIN_COSINE))]
    judged = [i for i in doubtful if i in unique and rows[i].kind != CONTRAST]
    verdicts = executes([(requests[nearest[i]], rows[i].response) for i in judged]) if judged else []
    executing = {i for i, verdict in zip(judged, verdicts, strict=True) if verdict}
    selected = []
    for i, row in enumerate(rows):
        reason = (
            "repeated" if i not in unique
            else "near a measured prompt" if i in repeats_measured
            else "" if row.kind == CONTRAST
            else "of the threat, by the encoder" if highest[i] >= WITHIN_COSINE
            else "of the threat, by the judge" if i in executing
            else ""
        )  # fmt: skip
        if reason:
            dropped[reason] += 1
        else:
            selected.append(row)
    if not selected:
        raise UserError(
            f"No benign sample is left ({', '.join(f'{n} {reason}' for reason, n in dropped.items())}): name another source of "
            "harmless prompts (`benign`)."
        )
    return selected, dict(dropped)


def write_benign_set(
    folder: Path, loaded: LoadedModel, rows: Sequence[BenignRow], dropped: dict[str, int], tokens: int
) -> tuple[int, dict[str, Any]]:
    """Write the set with the model's predictions; returns the tokens that were scored, and the card's figures.

    Args:
        folder: to write to.
        loaded: the model as shipped.
        rows: the samples.
        dropped: numbers of the samples that were left out, by reason, for the card.
        tokens: longest response; a document is up to :data:`DOCUMENT_LENGTH` times as long.
    """
    # The model's own text without a template: capability tasks and documents are scored so.
    general = [row for row in rows if row.kind in (SELF_WRITTEN, NAMED)]
    rows = [*rows, *(BenignRow(PLAIN, "", row.response) for row in general[: round(PLAIN_SHARE * len(general))])]
    rows = sorted(rows, key=lambda row: content_hash([row.kind, row.prompt, row.response]))
    samples = [_sample(loaded.chat, row, tokens) for row in rows]
    usable = [i for i, sample in enumerate(samples) if sample.response_tokens and len(sample.tokens) <= loaded.window]
    teacher = predict(loaded, [samples[i] for i in usable], label="predictions of the model as shipped")
    write_rows(folder / ROWS, BenignRow, [rows[i] for i in usable])
    save_teacher(folder / TEACHER, teacher)
    card = card_of([rows[i] for i in usable], dropped)
    write_json(folder / CARD, card)
    return sum(len(samples[i].tokens) for i in usable), card


def read_benign_set(folder: Path) -> BenignSet:
    """Read what :func:`write_benign_set` wrote. About one response of :data:`HELD_BACK`, and at least one, is held back."""
    rows, teacher = read_rows(folder / ROWS, BenignRow), load_teacher(folder / TEACHER)
    # By the response: a text with a prompt and the same text without one are on the same side.
    hashes = {row.response: int(content_hash(row.response)[:8], 16) for row in rows}
    held_texts = {text for text, number in hashes.items() if number % HELD_BACK == 0}
    held_texts |= {min(hashes, key=lambda text: hashes[text])} if len(hashes) > 1 else set()
    train, held_back, exchanges = [], [], []
    for row, sample in zip(rows, teacher, strict=True):
        if row.response in held_texts:
            held_back.append(sample)
            continue
        train += [sample] * (NEAR_REPEATED if row.kind in (CONTRAST, NEIGHBOUR) else 1)
        if row.prompt:
            exchanges.append((row.prompt, row.response))
    return BenignSet(train, held_back, exchanges)


def card_of(rows: Sequence[BenignRow], dropped: dict[str, int]) -> dict[str, Any]:
    """How many samples of each kind there are, what was left out, and how diverse they are.

    The diversity of prompts and of responses is the share of different word pairs among all word pairs, in [0, 1] (distinct-2, Li
    et al., NAACL 2016, arXiv 1510.03055).
    """
    return {
        "samples": len(rows),
        "kinds": dict(Counter(row.kind for row in rows)),
        "left_out": dropped,
        "distinct_2": {
            name: _distinct_2([getattr(row, name) for row in rows if row.prompt]) for name in ("prompt", "response")
        },
    }


def _distinct_2(texts: Sequence[str]) -> float:
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)]
    return round(len(set(pairs)) / len(pairs), 3) if pairs else 0.0


def _sample(chat: Chat, row: BenignRow, tokens: int) -> Sample:
    """The sample of a row; of a text without a prompt, all tokens but the first are predicted."""
    if row.prompt:
        return chat.sample(row.prompt, row.response, tokens * (DOCUMENT_LENGTH if row.kind == DOCUMENT else 1))
    text = list(chat.tokenizer.encode(row.response))[: tokens + 1]
    return Sample(text, min(1, len(text)))


def _mixed(rows: Sequence[dict[str, Any]]) -> Any:
    """Rows of built-in data in an order that mixes their subjects."""
    return iter(sorted(rows, key=lambda row: content_hash(row["prompt"])))
