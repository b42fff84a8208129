"""Reading of the JSON files that a run leaves: `run.json`, `samples.json`, `summary.json`, `searches.json`, `plan.json`."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tamperfuse.records.errors import UserError, invalid_place, shown
from tamperfuse.records.files import read_json
from tamperfuse.records.reading import path_exists

M = TypeVar("M", bound=BaseModel)


def read_run_file(path: Path, model: type[M], *, schema: int | None = None, of: str = "a finished run") -> M:
    """Read a file of a run.

    Args:
        path: of the file.
        model: what it holds.
        schema: number that the file must state as its `schema`; None for files without one.
        of: what has such a file, for the message.

    Raises:
        UserError: it is missing or damaged, or of another schema.
    """
    if not path_exists(path):
        raise UserError(f"{shown(path.parent)} holds no {path.name}: name the folder of {of}.")
    content = read_json(path)
    if schema is not None and isinstance(content, dict):
        # The model has a default for it, so a file without one would be read as one of this schema.
        stated = content.get("schema")
        if type(stated) is not int or stated != schema:
            has = "states no schema" if stated is None else f"has schema {shown(repr(stated))}"
            raise UserError(f"{path} {has}, and this version reads schema {schema}: run the study again.")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path} is damaged (at {invalid_place(error)}): run the study again.") from error
