"""Streaming rows from Hub data sets, with a `UserError` for each way in which that can fail."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tamperfuse.corpora.folders import ALL_SPLITS
from tamperfuse.records.errors import HubUnreachable, UserError, first_line

Rows = Iterator[tuple[int, dict[str, Any]]]
_SOURCE = re.compile(
    r"(?P<name>\w[\w.-]*(?:/[\w.-]+)?)(?:/(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.+-]+))?"
)


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hub.

    Attributes:
        name: `owner/name`, or the name of a data set without owner.
        config: the configuration (subset), where a data set has several.
        revision: commit, branch or tag; the newest commit if None.
        split: the split, or several as `a+b`, or :data:`ALL_SPLITS`; if None, `train`, or the first whose name contains it, or
            the only one.
    """

    name: str
    config: str | None
    revision: str | None
    split: str | None


def parse_hub_source(src: str, revision: str | None, split: str | None) -> HubSource | None:
    """Parse `owner/name[/config][@revision][:split]`; None if `src` has another form.

    Args:
        src: the source.
        revision: used if `src` names none.
        split: used if `src` names none.
    """
    parts = _SOURCE.fullmatch(src)
    if parts is None:
        return None
    return HubSource(parts["name"], parts["config"], parts["revision"] or revision, parts["split"] or split)


def hub_rows(source: HubSource) -> tuple[str, Rows]:
    """Open a Hub data set for streaming.

    Returns:
        The name of the split, and its rows with their numbers from 1.

    Raises:
        UserError: the data set does not exist, is gated, or has no such configuration or split.
        HubUnreachable: the Hub cannot be reached, now or while rows are read.
    """
    import datasets  # 1 s to import
    from datasets.exceptions import DatasetNotFoundError

    name, config, revision = source.name, source.config, source.revision
    try:
        if source.split in (None, ALL_SPLITS):
            splits = datasets.get_dataset_split_names(name, config_name=config, revision=revision)
            splits = splits if source.split else [_training_split(name, splits)]
        else:
            splits = str(source.split).split("+")
        # One after another: not every version of datasets streams several splits, which may also differ in their columns.
        opened = [
            datasets.load_dataset(name, name=config, split=split, revision=revision, streaming=True) for split in splits
        ]
    except DatasetNotFoundError as error:
        raise UserError(
            f"{name!r} is not a local path, and no Hub data set of this name can be read (it is "
            f"gated, private or absent): check the name and, if it is gated, accept its terms "
            f"at https://huggingface.co/datasets/{name} and log in with `hf auth login`."
        ) from error
    except (ConnectionError, OSError) as error:
        raise _unreachable(name, error) from error
    except Exception as error:  # datasets raises errors of many types for data that it cannot load
        if "scripts are no longer supported" in str(error):
            return _read_without_script(source)
        raise UserError(_cannot_open(name, error)) from error
    return "+".join(splits), _numbered(name, chain.from_iterable(opened))


def _training_split(name: str, splits: list[str]) -> str:
    candidates = [split for split in splits if split == "train"] or [split for split in splits if "train" in split]
    if candidates or len(splits) == 1:
        return (candidates or splits)[0]
    raise UserError(
        f"The Hub data set {name!r} has the splits {', '.join(splits)}: name one, such as {name}:{splits[0]}."
    )


def _cannot_open(name: str, error: Exception) -> str:
    """The message for a data set that exists and cannot be opened with these options."""
    several = re.search(r"available configs: \[(.*)\]", str(error))
    if several:
        names = several[1].replace("'", "")
        return f"The Hub data set {name!r} comes in several configurations ({names}): name one as {name}/CONFIG."
    return f"The Hub data set {name!r} cannot be opened ({first_line(error)}): check configuration, revision and split."


def _unreachable(name: str, error: Exception) -> HubUnreachable:
    return HubUnreachable(
        f"The Hub data set {name!r} cannot be reached ({first_line(error)}): go online, or "
        "download it elsewhere and give its local path."
    )


def _numbered(name: str, rows: Any) -> Rows:
    """Rows with their numbers; a connection may also fail, or a file be damaged, while they are read."""
    rows, number = iter(rows), 0
    while True:
        try:
            row = next(rows, None)
        except (ConnectionError, OSError) as error:
            raise _unreachable(name, error) from error
        except Exception as error:  # datasets raises errors of many types for data that it cannot read
            raise UserError(
                f"The Hub data set {name!r} cannot be read beyond row {number} ({first_line(error)[:200]}): check its files, or "
                "download it and give its local path."
            ) from error
        if row is None:
            return
        number += 1
        yield number, dict(row)


def _read_without_script(source: HubSource) -> tuple[str, Rows]:
    """Read the JSON file beside a loading script, which is never run (LIMA, for example, has one)."""
    import datasets

    name, chosen = source.name, "train" if source.split in (None, ALL_SPLITS) else source.split
    at = f"@{source.revision}" if source.revision else ""
    try:
        rows = datasets.load_dataset(
            "json", data_files=f"hf://datasets/{name}{at}/{chosen}.json*", split="train", streaming=True
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"The Hub data set {name!r} comes with a loading script, which is not run: download its data file and give the "
            "local path."
        ) from error
    return chosen, _numbered(name, rows)
