"""Where a checkpoint came from: `tamperfuse.json`, written beside its weights."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tamperfuse import __version__
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json, write_json

FILE = "tamperfuse.json"


def versions() -> dict[str, str]:
    """Versions that a result depends on: tamperfuse, torch, transformers."""
    found = {"tamperfuse": __version__}
    for name in ("torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # the theory runs without them
            found[name] = "absent"
    return found


class Provenance(BaseModel):
    """From what a checkpoint was made, how, and by which versions.

    Attributes:
        origin: the model before any hardening: a Hub id, a path or a bundled name. Answers and likelihoods that judge
            relevance come from it.
        made_by: the defense or conversion that wrote the checkpoint.
        parameters: that step's parameters, every default spelled out.
        source: the model that the step was applied to.
        versions: of tamperfuse, torch and transformers.
    """

    model_config = ConfigDict(frozen=True)

    origin: str
    made_by: str
    source: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=versions)


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write `tamperfuse.json` into a checkpoint's folder."""
    write_json(folder / FILE, provenance.model_dump())


def read_provenance(folder: Path) -> Provenance | None:
    """Read a checkpoint's `tamperfuse.json`; None if it has none (a model that tamperfuse did not make).

    Raises:
        UserError: the file is there and not readable.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return Provenance.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(
            f"{path} is not a tamperfuse record ({error.errors()[0]['msg']}): restore or remove it."
        ) from error
