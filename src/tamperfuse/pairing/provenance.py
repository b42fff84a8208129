"""What the audit says of a source: schema, licence, revision, hash."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tamperfuse.corpora.files import shards
from tamperfuse.corpora.sources import BUILTIN, schema_of
from tamperfuse.records.files import sha256_of


@dataclass(frozen=True)
class SourceRecord:
    """A source, as a reviewer wants to see it.

    Attributes:
        source: as the user named it.
        role: "harmful", "responses", "decontaminate" or "replay".
        weight: its weight, None if sources were taken whole.
        layout: the schema it was recognised as.
        licence: as far as it is known.
        revision: of Hub sources: the commit.
        sha256: of local and built-in files (of a directory: of its files' hashes, in order).
    """

    source: str
    role: str
    weight: float | None
    layout: str
    licence: str
    revision: str
    sha256: str


def record_of(source: str, role: str, weight: float | None = None, revision: str | None = None) -> SourceRecord:
    """Look a source up; what cannot be found out is said so, never left to be guessed."""
    path = Path(source).expanduser()
    if source.startswith(BUILTIN):
        name = source.removeprefix(BUILTIN)
        file = Path(__file__).parents[1] / "corpora" / "data" / f"{name}.jsonl"
        return SourceRecord(source, role, weight, "built-in", "Apache-2.0", "", sha256_of(file))
    if path.exists():
        hashes = [sha256_of(file) for file in shards(path)]
        digest = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        return SourceRecord(path.name, role, weight, schema_of(source), "not stated: local file", "", digest)
    licence, commit = _hub_facts(source, revision)
    return SourceRecord(source, role, weight, "Hub", licence, commit, "")


def _hub_facts(name: str, revision: str | None) -> tuple[str, str]:
    """Licence and commit of a Hub data set."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(name, revision=revision)
    except (OSError, ValueError):  # it was readable a moment ago; the audit is not worth failing over
        return "not stated: the Hub did not answer", revision or ""
    licence = info.card_data.get("license") if info.card_data else None
    return str(licence or "not stated by its card"), str(info.sha or "")
