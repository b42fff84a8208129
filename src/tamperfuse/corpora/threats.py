"""Threats: domains of requests that the publisher of a model does not want executed, in disjoint parts.

defender      the only part that a defense receives
attacker      training data of attacks
attacker_dev  prompts on which an attacker chooses its step
evaluation    prompts on which rates are reported
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.examples import PARTS as PARTS
from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.examples import Part as Part
from tamperfuse.corpora.overlap import distinct, near, plain
from tamperfuse.corpora.schemas import is_missing, text
from tamperfuse.corpora.sources import BUILTIN, clean_text, raw_rows, read_source
from tamperfuse.models.encoder import MemoizedEncoder, TextEncoder, default_encoder
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash
from tamperfuse.records.reading import local_path, path_exists

log = logging.getLogger("tamperfuse")

# Shares of the parts when a data set is split; about those of the built-in threats.
SHARES: dict[Part, float] = {"defender": 0.40, "attacker": 0.22, "attacker_dev": 0.08, "evaluation": 0.30}
MOST_PROMPTS = 2_000  # prompts of a data set that are used: enough for rates to 2 percentage points


@dataclass(frozen=True)
class ThreatPrompt:
    """One request of a threat.

    Attributes:
        id: unique within the threat.
        prompt: the request.
        kind: type of the request; "" if unknown.
        response: a compliant answer; "" if unknown (then the model's answer before hardening is used).
    """

    id: str
    prompt: str
    kind: str = ""
    response: str = ""


@dataclass(frozen=True)
class Threat:
    """The prompts of a threat by part.

    Attributes:
        source: as the user wrote it.
        parts: prompts of every part, sorted by a hash of their text, so that a prefix is a random sample.
        named: whether the user's file named the parts, which may then share near-duplicates.
    """

    source: str
    parts: dict[Part, tuple[ThreatPrompt, ...]]
    named: bool = False

    def part(self, part: Part, limit: int | None = None) -> tuple[ThreatPrompt, ...]:
        """Prompts of a part; the first `limit` of them if it is set."""
        return self.parts[part][:limit]

    def examples(self, part: Part) -> list[Example]:
        """Prompts of a part as corpus rows without responses, as :func:`tamperfuse.pairing.make_pairs` takes them."""
        return [Example(p.prompt, "", p.kind, f"{self.source}#{p.id}") for p in self.parts[part]]

    @property
    def subject(self) -> str:
        """The `subject` of rows in other built-in data that belong to this threat's domain; "" if there are none."""
        return "garden plants" if self.source == "builtin:gardening" else ""

    @property
    def prompts(self) -> list[str]:
        """All prompts, of every part."""
        return [prompt.prompt for part in PARTS for prompt in self.parts[part]]

    @property
    def fingerprint(self) -> str:
        """Hash of the content."""
        return content_hash([[(p.id, p.prompt, p.response) for p in self.parts[part]] for part in PARTS])


def load_threat(source: str, encoder: TextEncoder | None = None) -> Threat:
    """Load a threat.

    Args:
        source: `builtin:NAME`; a source of any format whose rows have `part` (defender, attacker, attacker_dev or evaluation),
            `prompt`, and optionally `id`, `kind` and `response`; or any other source of prompts that :func:`read_source` reads,
            which is then split into parts.
        encoder: finds near-duplicates when a source is split; the default one if None.

    Raises:
        UserError: the source is missing or damaged, a part has fewer than 2 prompts, or two parts have prompts of the same words.
    """
    if source.startswith(BUILTIN):
        rows = enumerate(builtin_rows(source.removeprefix(BUILTIN)), 1)
        return _in_parts(source, ((source, number, row) for number, row in rows))
    if _names_parts(source):
        return replace(_in_parts(source, raw_rows(source)), named=True)
    return _split(source, read_source(source), encoder or default_encoder())


def shared_prompts(threat: Threat, encoder: TextEncoder) -> list[tuple[str, str]]:
    """Prompts of one part that are near-duplicates of a prompt of an earlier part, each with that one.

    Args:
        threat: the threat.
        encoder: finds near-duplicates.
    """
    encoder = MemoizedEncoder(encoder)
    earlier: list[str] = []
    shared: list[tuple[str, str]] = []
    for part in PARTS:
        prompts = [prompt.prompt for prompt in threat.part(part)]
        duplicates = near(prompts, earlier, encoder) if earlier else {}
        shared += [(prompts[index], other) for index, (other, _) in duplicates.items()]
        earlier += prompts
    return shared


def _names_parts(source: str) -> bool:
    """Whether a source has a column `part`, in any row of a local file or the first of a Hub data set.

    Raises:
        UserError: it has no row at all.
    """
    is_empty = True
    for where, _, row in raw_rows(source):
        is_empty = False
        if "part" in row:
            return True
        if where == source and not path_exists(local_path(source)):  # of a Hub data set, all rows have the same columns
            return False
    if is_empty:
        raise UserError(f"{source} is empty: a threat needs prompts in every part.")
    return False


def _in_parts(source: str, rows: Iterable[tuple[str, int, dict[str, Any]]]) -> Threat:
    """A threat from rows with a `part`, each with the name of its file and its number."""
    by_part: dict[Part, list[ThreatPrompt]] = {part: [] for part in PARTS}
    places: dict[tuple[Part, str], int] = {}  # of prompts in their parts, by their text
    part_of_text: dict[str, str] = {}
    ids: set[str] = set()
    repeated = 0
    for count, (where, number, row) in enumerate(rows, 1):
        prompt = _threat_prompt(where, number, row, count)
        part = cast(Part, row["part"])
        prompts, key = by_part[part], plain(prompt.prompt)
        if part_of_text.setdefault(key, part) != part:
            raise UserError(
                f"Parts {part_of_text[key]} and {part} of {source} overlap: both hold the prompt {prompt.prompt!r} (row {number} "
                f"of {where}), perhaps in another case or punctuation; keep it in one."
            )
        place = places.setdefault((part, prompt.prompt.casefold()), len(prompts))
        if place < len(prompts):
            repeated += 1
            if not prompts[place].response:
                prompts[place] = replace(prompts[place], response=prompt.response)
            continue
        if prompt.id in ids:
            raise UserError(
                f"Row {number} of {where} repeats the id {prompt.id!r}: give it another one, or leave all ids out."
            )
        ids.add(prompt.id)
        prompts.append(prompt)
    if repeated:
        log.warning(
            "%s rows of %s repeat a prompt of their part: it counts once, with its first answer.",
            f"{repeated:,}",
            source,
        )
    return _threat(source, by_part)


def _threat_prompt(where: str, number: int, row: dict[str, Any], count: int) -> ThreatPrompt:
    """The prompt of a row with a `part`.

    Args:
        where: name of its file.
        number: of the row in that file.
        row: its fields.
        count: of the row in all files, which is in the id of a row without one.

    Raises:
        UserError: its part is unknown, its prompt is missing, or a field is not text.
    """
    part = row.get("part")
    try:
        prompt = clean_text(text(row, "prompt")) if isinstance(row.get("prompt"), str) else ""
        kind, response = (clean_text(text(row, name)) if row.get(name) else "" for name in ("kind", "response"))
    except ValueError as error:
        raise UserError(f"Row {number} of {where} is not a row of a threat ({error}): write text there.") from error
    if not isinstance(part, str) or part not in PARTS or not prompt:
        raise UserError(
            f"Row {number} of {where} is not a row of a threat: give it a `prompt` that is not empty and a `part` that is one "
            f"of {', '.join(PARTS)}."
        )
    name = row.get("id")
    return ThreatPrompt(
        id=clean_text(str(name)) if name and not is_missing(name) else f"{part}-{count}",
        prompt=prompt,
        kind=kind,
        response=response,
    )


def _split(source: str, examples: Iterable[Example], encoder: TextEncoder) -> Threat:
    """A threat from prompts without parts: near-duplicates are left out, and a hash of its text decides a prompt's part.

    So a prompt is in the same part whatever else the data set holds, and near-duplicates are not in two parts.
    """
    by_text = {example.prompt: example for example in sorted(examples, key=_prompt_and_response) if example.prompt}
    chosen = sorted(by_text, key=content_hash)[:MOST_PROMPTS]
    unique = [by_text[chosen[index]] for index in distinct(chosen, encoder)]
    by_part: dict[Part, list[ThreatPrompt]] = {part: [] for part in PARTS}
    for example in unique:
        name = content_hash(["threat", example.prompt])
        by_part[_part_of(name)].append(ThreatPrompt(name[:12], example.prompt, example.category, example.response))
    log.info(
        "%s: %s different prompts, of which %s are used: %s near-duplicates%s are left out. They are split into %s.",
        source,
        f"{len(by_text):,}",
        f"{len(unique):,}",
        f"{len(chosen) - len(unique):,}",
        f" and {len(by_text) - len(chosen):,} above the limit" if len(chosen) < len(by_text) else "",
        ", ".join(f"{part} {len(prompts)}" for part, prompts in by_part.items()),
    )
    return _threat(source, by_part)


def _prompt_and_response(example: Example) -> tuple[str, str]:
    """Sort key: of several responses to one prompt, the same one is used whatever the order of the file."""
    return example.prompt, example.response


def _part_of(name: str) -> Part:
    """The part of the prompt with this hash."""
    position = int(name[:13], 16) / 16**13
    for part, share in SHARES.items():
        if position < share:
            return part
        position -= share
    return "evaluation"


def _threat(source: str, by_part: dict[Part, list[ThreatPrompt]]) -> Threat:
    for part in PARTS:
        if len(by_part[part]) < 2:
            count, total = len(by_part[part]), sum(map(len, by_part.values()))
            raise UserError(
                f"Of the {total} prompts of {source} {count} are in the part {part}, which needs at least 2: add different ones "
                "(150 or more are recommended), or add a column `part`: without one a hash of each prompt decides its part."
            )
    return Threat(source=source, parts={part: tuple(sorted(rows, key=_text_hash)) for part, rows in by_part.items()})


def _text_hash(prompt: ThreatPrompt) -> str:
    return content_hash(prompt.prompt)
