"""What tells one model from another: a hash of its content, and what is equal while it has not changed."""

from pathlib import Path
from typing import Any

from tamperfuse.models.adapter import base_of
from tamperfuse.models.checks import is_adapter, weight_files
from tamperfuse.models.conversion import converted_fingerprint
from tamperfuse.models.hub_ids import hub_commit
from tamperfuse.models.load import read_config, resolve_model
from tamperfuse.records.files import content_hash, sha256_of
from tamperfuse.records.provenance import FILE

READ_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")


def model_fingerprint(name: str, chat_template: str = "") -> str:
    """A hash that changes with a model's weights: of the checksums of local files, or of the Hub id and its commit.

    Args:
        name: the model.
        chat_template: that of :func:`load_model`; part of the hash unless it is "".

    Raises:
        UserError: no model of that name exists, or the Hub cannot be reached.
    """
    if chat_template:
        return content_hash([model_fingerprint(name), chat_template])
    folder = resolve_model(name)
    if folder is None:
        read_config(name)  # its errors say why a model cannot be read
        return content_hash([name, hub_commit(name)])
    if checksum := converted_fingerprint(folder):  # that of a user's folder may be out of date
        return checksum
    hashes: list[Any] = [[path.name, sha256_of(path)] for path in _fingerprint_files(folder)]
    return content_hash([*hashes, model_fingerprint(base_of(folder))] if is_adapter(folder) else hashes)


def model_state(name: str) -> list[Any]:
    """What is equal while a model has not changed, without reading its weights: the Hub's commit, or its files' sizes and times.

    Raises:
        UserError: no model of that name exists, or the Hub cannot be reached.
    """
    folder = resolve_model(name)
    if folder is None:
        return [hub_commit(name)]
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in _fingerprint_files(folder)]
    return [*files, *(model_state(base_of(folder)) if is_adapter(folder) else [])]


def _fingerprint_files(folder: Path) -> list[Path]:
    rest = [path for pattern in READ_BESIDE_WEIGHTS for path in folder.glob(pattern)]
    return sorted([*weight_files(folder), *(path for path in rest if path.name != FILE)])
