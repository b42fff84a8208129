"""Records of the sources for the audit: layout, licence, revision, hash."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tamperfuse.corpora.folders import ALL_SPLITS, shards
from tamperfuse.corpora.hub import HubSource, parse_hub_source
from tamperfuse.corpora.sources import BUILTIN, schema_of
from tamperfuse.pairing.options import PairOptions, split_weights
from tamperfuse.records.files import sha256_of
from tamperfuse.records.progress import progress
from tamperfuse.records.reading import local_path, path_exists
from tamperfuse.records.yaml import parse_yaml


@dataclass(frozen=True)
class SourceRecord:
    """A source of a run.

    Attributes:
        source: as the user wrote it; of a local path, the last components.
        role: "harmful", "responses", "decontaminate" or "replay".
        weight: its share beside the other sources' weights; None for all of it.
        layout: name of the schema.
        licence: as stated by its card, or that it is not stated.
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
    prompt_fields, response_fields = (options.prompt_field, options.category_field), (options.response_field,)
    records: list[SourceRecord] = []
    sources: list[tuple[str, str, float | None, Sequence[str | None]]] = [
        *(("harmful", source, weight, prompt_fields) for source, weight in split_weights(options.harmful)),
        *(("responses", source, weight, response_fields) for source, weight in split_weights(options.responses)),
        *(("decontaminate", source, None, prompt_fields) for source in options.decontaminate),
    ]
    if options.replay or options.multi_turn:
        sources.append(("replay", options.replay_source, None, ()))
    names = options.source_names()
    with progress("hashing sources", len(sources)) as advance:
        for role, source, weight, fields in sources:
            # As they were read: --revision and --split are for prompts and responses.
            is_main = role in ("harmful", "responses")
            split = options.split if is_main else ALL_SPLITS if role == "decontaminate" else None
            revision = options.revision if is_main else None
            records.append(_record(source, role, weight, names.get(source, ""), fields, revision, split))
            advance(1)
    return records


def _record(
    source: str,
    role: str,
    weight: float | None,
    called: str,
    fields: Sequence[str | None],
    revision: str | None,
    split: str | None,
) -> SourceRecord:
    """The record of a source; facts that cannot be determined are recorded as such."""
    path = local_path(source)
    if source.startswith(BUILTIN):
        name = source.removeprefix(BUILTIN)
        file = Path(__file__).parents[1] / "corpora" / "data" / f"{name}.jsonl"
        return SourceRecord(source, role, weight, "built-in", "Apache-2.0", "", sha256_of(file))
    if path_exists(path):
        hashes = [sha256_of(file) for file in shards(path, split)]
        digest = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        layout = schema_of(source, fields, split)
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
    except (
        Exception
    ):  # of whatever network library: the data was readable before, and a missing fact does not fail the run
        return "not stated: the Hub did not answer", source.revision or ""
    licence = info.card_data.get("license") if info.card_data else None
    return str(licence or "not stated by its card"), str(info.sha or "")
