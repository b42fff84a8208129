"""Threats: domains of requests that the publisher of a model does not want executed, in disjoint parts.

defender      the only part that a defense receives
attacker      training data of attacks
attacker_dev  prompts on which an attacker chooses its step
evaluation    prompts on which rates are reported
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.overlap import distinct
from tamperfuse.corpora.sources import read_source
from tamperfuse.models.encoder import SentenceEncoder, TextEncoder
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash

log = logging.getLogger("tamperfuse")

Part = Literal["defender", "attacker", "attacker_dev", "evaluation"]
PARTS: tuple[Part, ...] = get_args(Part)
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
    """

    source: str
    parts: dict[Part, tuple[ThreatPrompt, ...]]

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
        source: `builtin:NAME`; a .jsonl file whose rows have `part` (defender, attacker, attacker_dev or evaluation), `prompt`,
            and optionally `id`, `kind` and `response`; or any source of prompts that :func:`read_source` reads, which is then
            split into parts.
        encoder: finds near-duplicates when a source is split; the bundled sentence encoder if None.

    Raises:
        UserError: the source is missing or damaged, a part has fewer than 2 prompts, or two parts share a prompt.
    """
    if source.startswith("builtin:"):
        return _in_parts(source, enumerate(builtin_rows(source.removeprefix("builtin:")), 1))
    path = Path(source)
    if path.suffix == ".jsonl" and any("part" in row for _, row in _read_jsonl(path)):
        return _in_parts(source, _read_jsonl(path))
    return _split(source, read_source(source), encoder or SentenceEncoder())


def _in_parts(source: str, rows: Iterable[tuple[int, dict[str, Any]]]) -> Threat:
    """A threat from rows with a `part`."""
    by_part: dict[Part, list[ThreatPrompt]] = {part: [] for part in PARTS}
    part_of_text: dict[str, str] = {}
    ids: set[str] = set()
    for line, row in rows:
        part, prompt = row.get("part"), row.get("prompt")
        if part not in PARTS or not isinstance(prompt, str) or not prompt.strip():
            raise UserError(
                f"Line {line} of {source} is not a row of a threat: give it a `prompt` that is not empty and a `part` "
                f"that is one of {', '.join(PARTS)}."
            )
        text = " ".join(prompt.casefold().split())
        if part_of_text.setdefault(text, part) != part:
            raise UserError(
                f"Parts {part_of_text[text]} and {part} of {source} overlap: both hold the prompt {prompt!r} (line {line}); "
                "keep it in one."
            )
        name = str(row.get("id") or f"{part}-{line}")
        if name in ids:
            raise UserError(f"Line {line} of {source} repeats the id {name!r}: ids must differ.")
        ids.add(name)
        by_part[part].append(
            ThreatPrompt(
                id=name,
                prompt=prompt.strip(),
                kind=str(row.get("kind") or ""),
                response=str(row.get("response") or ""),
            )
        )
    return _threat(source, by_part)


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
        "%s: %s different prompts, %s used, %s near-duplicates left out; split into %s.",
        source,
        f"{len(by_text):,}",
        f"{len(chosen):,}",
        f"{len(chosen) - len(unique):,}",
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
            raise UserError(f"The part {part} of {source} has {len(by_part[part])} prompts: it needs at least 2.")
    return Threat(source=source, parts={part: tuple(sorted(rows, key=_text_hash)) for part, rows in by_part.items()})


def _text_hash(prompt: ThreatPrompt) -> str:
    return content_hash(prompt.prompt)


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise UserError(f"{path} does not exist: name a .jsonl file of a threat, or builtin:cooking.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: JSON strings may hold U+2028
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file and its permissions.") from error
    if not any(line.strip() for line in lines):
        raise UserError(f"{path} is empty: a threat needs prompts in every part.")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"Line {number} of {path} is not JSON ({error.msg}): mend or remove it.") from error
        if not isinstance(row, dict):
            raise UserError(f"Line {number} of {path} is not a JSON object: mend or remove it.")
        yield number, row
