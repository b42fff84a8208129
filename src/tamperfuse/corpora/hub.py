"""Rows out of a Hub data set, streamed, with a sentence for each way in which that can fail."""

from collections.abc import Iterator
from typing import Any

from tamperfuse.records.errors import UserError


def hub_rows(name: str, *, revision: str | None, split: str | None) -> tuple[str, Iterator[tuple[int, dict[str, Any]]]]:
    """Open a Hub data set for streaming.

    Args:
        name: `owner/name`, or the name of a data set without owner.
        revision: commit, branch or tag; the newest commit if None.
        split: the split; if None, `train`, or the first whose name contains it, or the only one.

    Returns:
        The split that was chosen, and its rows with their numbers from 1.

    Raises:
        UserError: absent, gated, not reachable, no such split.
    """
    import datasets  # 1 s to import
    from datasets.exceptions import DatasetNotFoundError

    try:
        chosen = split or _training_split(name, datasets.get_dataset_split_names(name, revision=revision))
        rows = datasets.load_dataset(name, split=chosen, revision=revision, streaming=True)
    except DatasetNotFoundError as error:
        raise UserError(
            f"The Hub data set {name!r} is gated, private or absent: check the name and, if it is gated, accept its terms "
            f"at https://huggingface.co/datasets/{name} and log in with `hf auth login`."
        ) from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        return _scriptless(name, revision, split)
    except (ConnectionError, OSError) as error:
        raise UserError(
            f"The Hub data set {name!r} cannot be reached from here ({str(error).splitlines()[0][:120]}): go online, or "
            "download it elsewhere and give the local path."
        ) from error
    except ValueError as error:
        raise UserError(f"The Hub data set {name!r} cannot be opened ({str(error).splitlines()[0][:160]}).") from error
    return chosen, enumerate((dict(row) for row in rows), 1)


def _training_split(name: str, splits: list[str]) -> str:
    candidates = [split for split in splits if split == "train"] or [split for split in splits if "train" in split]
    if candidates or len(splits) == 1:
        return (candidates or splits)[0]
    raise UserError(f"The Hub data set {name!r} has the splits {', '.join(splits)}: choose one with --split.")


def _scriptless(name: str, revision: str | None, split: str | None) -> tuple[str, Iterator[tuple[int, dict[str, Any]]]]:
    """Data sets such as LIMA carry a loading script, which is never run: the JSON lines beside it are read instead."""
    import datasets

    chosen = split or "train"
    at = f"@{revision}" if revision else ""
    try:
        rows = datasets.load_dataset(
            "json", data_files=f"hf://datasets/{name}{at}/{chosen}.json*", split="train", streaming=True
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"The Hub data set {name!r} comes with a loading script, which is not run: download its data file and give the "
            "local path."
        ) from error
    return chosen, enumerate((dict(row) for row in rows), 1)
