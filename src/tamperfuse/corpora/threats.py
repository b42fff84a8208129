"""Threats: a domain of requests that the publisher does not want executed, in disjoint parts.

defender      all that a defense is handed
attacker      what an attack trains on
attacker_dev  where the attacker decides when to stop
evaluation    where rates are reported
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash

Part = Literal["defender", "attacker", "attacker_dev", "evaluation"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class ThreatPrompt:
    """One request of a threat.

    Attributes:
        id: unique within the threat.
        prompt: the request.
        kind: what sort of request it is; "" where unknown.
        response: the compliant answer, where known; "" where the model's own before hardening serves.
    """

    id: str
    prompt: str
    kind: str = ""
    response: str = ""


@dataclass(frozen=True)
class Threat:
    """A threat's prompts by part.

    Attributes:
        source: what the user called it.
        parts: prompts of every part, each sorted by a hash of its text, so that a prefix is a fair sample.
    """

    source: str
    parts: dict[Part, tuple[ThreatPrompt, ...]]

    def part(self, part: Part, limit: int | None = None) -> tuple[ThreatPrompt, ...]:
        """Prompts of a part; at most `limit` of them, always the same ones."""
        return self.parts[part][:limit]

    @property
    def fingerprint(self) -> str:
        """Hash of the content."""
        return content_hash([[(p.id, p.prompt, p.response) for p in self.parts[part]] for part in PARTS])


def load_threat(source: str) -> Threat:
    """Load a threat.

    Args:
        source: `builtin:NAME`, or a .jsonl file whose rows have `part` (defender, attacker, attacker_dev or
            evaluation), `prompt`, and optionally `id`, `kind` and `response`.

    Raises:
        UserError: the file is missing or damaged, a part is empty, or two parts share a prompt.
    """
    if source.startswith("builtin:"):
        rows: Iterable[tuple[int, dict[str, Any]]] = enumerate(builtin_rows(source.removeprefix("builtin:")), 1)
    else:
        rows = _read_jsonl(Path(source))
    found: dict[Part, list[ThreatPrompt]] = {part: [] for part in PARTS}
    where: dict[str, str] = {}
    ids: set[str] = set()
    for line, row in rows:
        part, prompt = row.get("part"), row.get("prompt")
        if part not in PARTS or not isinstance(prompt, str) or not prompt.strip():
            raise UserError(
                f"Line {line} of {source} is no row of a threat: it needs a `prompt` that is not empty and a `part` "
                f"that is one of {', '.join(PARTS)}."
            )
        text = " ".join(prompt.casefold().split())
        if where.setdefault(text, part) != part:
            raise UserError(
                f"Parts {where[text]} and {part} of {source} overlap: both hold the prompt {prompt!r} (line {line}); "
                "keep it in one."
            )
        name = str(row.get("id") or f"{part}-{line}")
        if name in ids:
            raise UserError(f"Line {line} of {source} repeats the id {name!r}: ids must differ.")
        ids.add(name)
        found[part].append(
            ThreatPrompt(
                id=name,
                prompt=prompt.strip(),
                kind=str(row.get("kind") or ""),
                response=str(row.get("response") or ""),
            )
        )
    for part in PARTS:
        if len(found[part]) < 2:
            raise UserError(f"The part {part} of {source} has {len(found[part])} prompts: it needs at least 2.")
    return Threat(source=source, parts={part: tuple(sorted(rows, key=_order)) for part, rows in found.items()})


def _order(prompt: ThreatPrompt) -> str:
    return content_hash(prompt.prompt)


def _read_jsonl(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise UserError(f"{path} does not exist: name a .jsonl file of a threat, or builtin:cooking.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
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
