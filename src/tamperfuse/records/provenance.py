"""Provenance of a checkpoint: `tamperfuse.json`, written beside its weights."""

import os
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tamperfuse import __version__
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json, write_json

FILE = "tamperfuse.json"
#: Stands for the folders above a model or a file in a record that was published.
LEFT_OUT = ".../"


@cache
def _installed(name: str) -> str:
    return version(name)


def versions() -> dict[str, str]:
    """Versions of tamperfuse, torch and transformers, on which results depend."""
    return {"tamperfuse": __version__, **{name: _installed(name) for name in ("torch", "transformers")}}


class Provenance(BaseModel):
    """How a checkpoint was made.

    Attributes:
        origin: the model before any hardening: a Hub id, a path or a bundled name. Judges use its answers and likelihoods.
        made_by: the defense, attack or conversion that wrote the checkpoint.
        parameters: of the defense, attack or conversion, including defaults.
        source: the model that it was applied to.
        chat_template: text of the chat template that was stated for the origin, in place of its tokenizer's; "" if none was.
        base: if `source` is a peft adapter, the model that it was merged into; "" otherwise.
        threat: source of the threat that a defense was given; "" if none is recorded.
        versions: of tamperfuse, torch and transformers.
    """

    model_config = ConfigDict(frozen=True)

    origin: str
    made_by: str
    source: str
    base: str = ""
    chat_template: str = ""
    threat: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=versions)

    def public(self) -> "Provenance":
        """The same record without the folders of this machine: of local paths the last name is left, `.../NAME`."""
        names = {field: without_folders(getattr(self, field)) for field in ("origin", "source", "base", "threat")}
        parameters = {
            name: without_folders(value) if isinstance(value, str) else value for name, value in self.parameters.items()
        }
        return self.model_copy(update={**names, "parameters": parameters})


def without_folders(name: str) -> str:
    """A local path as `.../NAME`; other names, such as ids of the Hub, as they are.

    A relative path with a folder is told from an id of the Hub by whether it exists.
    """
    is_path = os.path.isabs(name) or name.startswith((".", "~")) or ("/" in name and os.path.exists(name))
    return LEFT_OUT + Path(name).name if is_path else name


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write `tamperfuse.json` into a checkpoint's folder."""
    write_json(folder / FILE, provenance.model_dump())


def read_provenance(folder: Path) -> Provenance | None:
    """Read the `tamperfuse.json` of a checkpoint; None if there is none (the model was not made by tamperfuse).

    Raises:
        UserError: the file cannot be read.
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
