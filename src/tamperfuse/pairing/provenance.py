"""What the audit says of a source: schema, licence, revision, hash."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tamperfuse.corpora.files import shards
from tamperfuse.corpora.hub import HubSource, parse_hub_source
from tamperfuse.corpora.sources import BUILTIN, schema_of
from tamperfuse.pairing.options import PairOptions, weighted
from tamperfuse.records.files import sha256_of
from tamperfuse.records.progress import progress
from tamperfuse.records.yaml import parse_yaml


@dataclass(frozen=True)
class SourceRecord:
    """A source, as a reviewer wants to see it.

    Attributes:
        source: as the user named it; of a local path, the last components.
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


def sources_of(options: PairOptions) -> list[SourceRecord]:
    """A record of every source of a run, in the order of their roles."""
    ask, answer = (options.prompt_field, options.category_field), (options.response_field,)
    found: list[SourceRecord] = []
    wanted: list[tuple[str, str, float | None, Sequence[str | None]]] = [
        *(("harmful", source, weight, ask) for source, weight in weighted(options.harmful)),
        *(("responses", source, weight, answer) for source, weight in weighted(options.responses)),
        *(("decontaminate", source, None, ask) for source in options.decontaminate),
    ]
    if options.replay or options.multi_turn:
        wanted.append(("replay", options.replay_source, None, ()))
    names = options.names()
    with progress("hashing sources", len(wanted)) as advance:
        for role, source, weight, fields in wanted:
            revision = options.revision if role in ("harmful", "responses") else None  # as they were read
            found.append(_record(source, role, weight, names.get(source, ""), fields, revision))
            advance(1)
    return found


def _record(
    source: str, role: str, weight: float | None, called: str, fields: Sequence[str | None], revision: str | None
) -> SourceRecord:
    """Look a source up; what cannot be found out is said so, never left to be guessed."""
    path = Path(source).expanduser()
    if source.startswith(BUILTIN):
        name = source.removeprefix(BUILTIN)
        file = Path(__file__).parents[1] / "corpora" / "data" / f"{name}.jsonl"
        return SourceRecord(source, role, weight, "built-in", "Apache-2.0", "", sha256_of(file))
    if path.exists():
        hashes = [sha256_of(file) for file in shards(path)]
        digest = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        layout = schema_of(source, fields)
        return SourceRecord(called, role, weight, layout, _stated_licence(path), "", digest)
    hub = parse_hub_source(source, revision, None)
    licence, commit = _hub_facts(hub) if hub else ("", "")
    return SourceRecord(source, role, weight, "Hub", licence, commit, "")


def _stated_licence(path: Path) -> str:
    """The `license` of the data card beside local files (README.md, as in a copy of a Hub data set)."""
    card = (path if path.is_dir() else path.parent) / "README.md"
    try:
        front = card.read_text(encoding="utf-8").split("---\n")[1] if card.is_file() else ""
        licence = dict(parse_yaml(front) or {}).get("license")
    except (OSError, ValueError, IndexError, TypeError, yaml.YAMLError):  # some other README
        licence = None
    return f"{licence} (by its README.md)" if licence else "not stated: local file"


def _hub_facts(source: HubSource) -> tuple[str, str]:
    """Licence and commit of a Hub data set."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(source.name, revision=source.revision)
    except (OSError, ValueError):  # it was readable a moment ago; the audit is not worth failing over
        return "not stated: the Hub did not answer", source.revision or ""
    licence = info.card_data.get("license") if info.card_data else None
    return str(licence or "not stated by its card"), str(info.sha or "")
