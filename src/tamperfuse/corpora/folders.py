"""Which files of a folder are its data: shards in any of its folders, without metadata, of one split.

A folder may be a data set as it is downloaded from the Hub (`data/train-00000-of-00001.parquet` beside `dataset_infos.json`),
one that `datasets` saved, or a folder of pairs that `tamperfuse pair` wrote.
"""

import fnmatch
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yaml import YAMLError

from tamperfuse.corpora.streams import COMPRESSIONS
from tamperfuse.records.errors import UserError
from tamperfuse.records.reading import check_file, path_exists, read_text, unreadable
from tamperfuse.records.yaml import parse_yaml

log = logging.getLogger("tamperfuse")

LINES = ".txt"  # one prompt a line; only where the file itself is named, since folders hold licences and notes as text
TEXT_FORMATS = (".jsonl", ".json", ".csv", LINES)
FORMATS = (*TEXT_FORMATS, ".parquet", ".arrow")
ALL_SPLITS = "all"
# Files that describe a data set, by name; every other file of a format must be data.
_METADATA = frozenset(
    [
        "dataset_info.json",
        "dataset_infos.json",
        "dataset_dict.json",
        "dataset-metadata.json",
        "datapackage.json",
        "croissant.json",
        "metadata.json",
        "state.json",
    ]
)
_SAVED = ("state.json", "dataset_info.json")
_PAIRS = ("pairs.parquet", "pairs.json")  # a folder of pairs: the first is the data, the rest is about it
_SHARD = re.compile(r"(?P<name>.+?)[-._]\d{5}-of-\d{5}")
# What `datasets` computes and stores beside the data of a saved or cached set, which is not its data.
_CACHED = re.compile(r"(?:cache-|tmp).*\.arrow", re.IGNORECASE)
_SNAPSHOTS, _REVISION = "snapshots", "refs/main"  # of a data set in the Hub's cache
_NO_SPLIT = frozenset(["part", "data", "shard", "chunk", "file", "rows"])
_SPLITS = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["validation", "valid", "val", "dev"], "validation"),
    **dict.fromkeys(["test", "testing", "eval", "evaluation"], "test"),
}
_ONE_SPLIT = "name the files of one, or, with `tamperfuse pair`, choose one with --split"
_SPLIT_NOUN = re.compile(r"(?<=.)(?:sets?|data|split|files?)$")  # trainset, testdata


def data_format(path: Path) -> str | None:
    """The suffix of a supported format, in lower case and without compression; None if the name has none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    formats: tuple[str, ...] = FORMATS
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
        formats = TEXT_FORMATS
    return suffixes[-1] if suffixes and suffixes[-1] in formats else None


def shards(path: Path, split: str | None = None) -> list[Path]:
    """The data files of a source: the file itself, or those below a folder, sorted by name.

    Hidden files and files that describe a data set are left out. If the names of files or of their folders say that they are of
    different splits (train, validation, test, or the name before `-00000-of-00001`), those of one split are returned.

    Args:
        path: a file or folder.
        split: the split of a folder that has several; `train`, or the one whose name contains it, if None; "all" for all.

    Raises:
        UserError: the path does not exist, cannot be read, or has no file of a supported format or no such split.
    """
    if not path_exists(path):
        raise UserError(f"{path} does not exist: check the path.")
    if not path.is_dir():
        check_file(path)
        if data_format(path) is None:
            raise _no_data(path)
        return [path]
    path = _snapshot(path)
    if all((path / name).is_file() for name in _PAIRS):
        return [path / _PAIRS[0]]
    files = sorted(
        file for file in _walk(path, set()) if data_format(file) not in (None, LINES) and not _is_about_data(file)
    )
    if not files:
        raise _no_data(path)
    for file in files:
        check_file(file)
    return files if split == ALL_SPLITS else _of_one_split(path, files, split)


def _is_about_data(file: Path) -> bool:
    """Whether a file describes a data set, or was computed from it, and is not its data."""
    if file.name.lower() in _METADATA:
        return True
    return bool(_CACHED.fullmatch(file.name)) and any((file.parent / name).exists() for name in _SAVED)


def _snapshot(folder: Path) -> Path:
    """The revision of a data set in the Hub's cache (`datasets--OWNER--NAME`) that `main` stands for; other folders as they are.

    Raises:
        UserError: it holds several revisions, and none is called `main`.
    """
    if not folder.name.startswith("datasets--") or not (folder / _SNAPSHOTS).is_dir():
        return folder
    revisions = sorted(path for path in (folder / _SNAPSHOTS).iterdir() if path.is_dir())
    main = read_text(folder / _REVISION).strip() if (folder / _REVISION).is_file() else ""
    chosen = [path for path in revisions if path.name == main] or revisions
    if len(chosen) > 1:
        raise UserError(
            f"{folder} holds the revisions {', '.join(path.name for path in chosen)} of a data set: name the folder of one, such "
            f"as {chosen[0]}."
        )
    return chosen[0] if chosen else folder


def _no_data(path: Path) -> UserError:
    return UserError(f"{path} holds no {', '.join(FORMATS)} data (text also .gz, .zst): convert it to one of these.")


def _walk(folder: Path, visited: set[tuple[int, int]]) -> Iterator[Path]:
    """The files below a folder that are not hidden; links to folders are followed, each folder is read once."""
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(folder, error) from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk(Path(entry.path), visited)
        else:
            yield Path(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links: an error only if it has the name of a data file
        return False


def split_of(path: Path) -> str:
    """The split that a relative path names; "" if it names none.

    It is the name before `-00000-of-00001`, or the word for a split in the name of the file or of the nearest folder.
    """
    shard = _SHARD.match(path.name)
    name = shard["name"] if shard else path.name
    if shard and len(_splits_in(name)) == 1:
        return name  # such as 30k_train
    for part in (name, *reversed(path.parts[:-1])):
        splits = _splits_in(part)
        if len(splits) == 1:
            return splits.pop()
    return name if shard and name.lower() not in _NO_SPLIT else ""


def _splits_in(name: str) -> set[str]:
    """The splits that words of a name stand for: `train`, and also `trainset` and `testData`."""
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return {_SPLITS[stem] for word in words if (stem := _SPLIT_NOUN.sub("", word)) in _SPLITS}


def _of_one_split(folder: Path, files: list[Path], split: str | None) -> list[Path]:
    """The files of the training split, or of `split`; all if they are of one split."""
    by_split = _splits_of_card(folder, files)
    if not by_split:
        for file in files:
            by_split.setdefault(split_of(file.relative_to(folder)), []).append(file)
    named = sorted(name for name in by_split if name)
    if split is not None and split in by_split:
        chosen = split
    elif len(by_split) == 1:
        return next(iter(by_split.values()))
    elif split is not None:
        raise UserError(f"{folder} has the splits {', '.join(named)} and not {split!r}: {_ONE_SPLIT}.")
    else:
        chosen = _training_split(folder, by_split, named)
    left_out = ", ".join(name for name in named if name != chosen)
    log.info(
        "%s: %s read, and %s left out.",
        folder,
        f"the split {chosen} is" if chosen else "files that name no split are",
        left_out,
    )
    return by_split[chosen]


def _splits_of_card(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """The files of every split by the `configs` of a Hub data set's card (README.md); empty if it has none that fit.

    Raises:
        UserError: the data set comes in several configurations.
    """
    data_files = _data_files_of_card(folder)
    patterns: dict[str, list[str]] = {}
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        patterns.setdefault(str(split), []).extend(map(str, paths if isinstance(paths, list) else [paths]))
    names = {file: file.relative_to(folder).as_posix() for file in files}
    by_split = {
        split: [file for file in files if any(fnmatch.fnmatchcase(names[file], path) for path in paths)]
        for split, paths in patterns.items()
    }
    return {split: matching for split, matching in by_split.items() if matching}


def _data_files_of_card(folder: Path) -> Any:
    """`data_files` of the card's only or default configuration; None if it states none."""
    try:
        front = read_text(folder / "README.md").split("---\n")[1]
        configs = [config for config in parse_yaml(front)["configs"] if isinstance(config, dict)]
    except (UserError, YAMLError, IndexError, KeyError, TypeError):  # no card, or one that states no configurations
        return None
    default = [config for config in configs if config.get("default") is True or config.get("config_name") == "default"]
    if len(configs) > 1 and len(default) != 1:
        names = ", ".join(str(config.get("config_name")) for config in configs)
        raise UserError(
            f"{folder} comes in several configurations ({names}; see its README.md): name the folder or the files of one."
        )
    return next((config.get("data_files") for config in default or configs), None)


def _training_split(folder: Path, by_split: dict[str, list[Path]], named: list[str]) -> str:
    training = [name for name in named if name == "train"] or [name for name in named if "train" in name.lower()]
    if training and "" in by_split:
        file, other = by_split[training[0]][0], by_split[""][0]
        raise UserError(
            f"{folder} holds {file.relative_to(folder)}, whose name says its split, and {other.relative_to(folder)}, whose name "
            "does not: name one of them, or move what does not belong there."
        )
    if len(training) > 1:
        raise UserError(f"{folder} has several training splits ({', '.join(training)}): {_ONE_SPLIT}.")
    if training or "" in by_split:
        return training[0] if training else ""
    raise UserError(f"{folder} has the splits {', '.join(named)}: {_ONE_SPLIT}.")
