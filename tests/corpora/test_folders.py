"""Which files of a folder are data: metadata, splits, links, and what cannot be read."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamperfuse.corpora.folders import shards
from tamperfuse.corpora.sources import read_source
from tamperfuse.records.errors import UserError


def _write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"prompt": name}]
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif name.endswith(".gz"):
            path.write_bytes(gzip.compress(json.dumps(rows[0]).encode()))
        else:
            path.write_text(json.dumps(rows[0]), encoding="utf-8")


def _names(folder: Path, split: str | None = None) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in shards(folder, split)]


TRAIN, TEST = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        ([TRAIN, TEST, "dataset_infos.json", "README.md"], None, [TRAIN]),
        ([TRAIN, TEST], "test", [TEST]),
        ([TRAIN, TEST], "all", [TEST, TRAIN]),
        (["train.json", "dataset_info.json"], None, ["train.json"]),
        (["train.jsonl", "validation.jsonl", "test.jsonl"], None, ["train.jsonl"]),
        (["my_train_set.csv", "my_test_set.csv"], None, ["my_train_set.csv"]),
        (["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"], None, ["train/a.jsonl", "train/b.jsonl"]),
        (["alpaca.json", "alpaca_eval.json"], None, ["alpaca.json"]),
        (["c4-train.00000-of-00002.json.gz", "c4-validation.00000-of-00002.json.gz"], None, ["c4-train.00000-of-00002.json.gz"]),
        (["data/30k_train-00000-of-00001.parquet", "data/30k_test-00000-of-00001.parquet"], "30k_test",
         ["data/30k_test-00000-of-00001.parquet"]),
        (["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"], None,
         ["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"]),
        (["test.jsonl"], None, ["test.jsonl"]),
        (["latest.jsonl", "contest.jsonl"], None, ["contest.jsonl", "latest.jsonl"]),
        (["trainset.json", "testset.json"], None, ["trainset.json"]),
        (["trainData.csv", "TestData.csv"], None, ["trainData.csv"]),
        (["training_data.jsonl", "devset.jsonl", "evalfile.jsonl"], None, ["training_data.jsonl"]),
        (["testimonials.jsonl", "develop.jsonl", "sets.jsonl"], None, ["develop.jsonl", "sets.jsonl", "testimonials.jsonl"]),
        (["state.json", "data-00000-of-00001.arrow", "cache-1f2e.arrow", "tmpa1.arrow"], None, ["data-00000-of-00001.arrow"]),
        (["cache-1.arrow", "cache-2.arrow"], None, ["cache-1.arrow", "cache-2.arrow"]),
        (["pairs.parquet", "pairs.json", "audit.json", "exports/openai/train.jsonl"], None, ["pairs.parquet"]),
    ],
)  # fmt: skip
def test_the_data_of_a_folder(tmp_path: Path, names: list[str], split: str | None, expected: list[str]) -> None:
    _write(tmp_path, *names)
    assert _names(tmp_path, split) == expected


@pytest.mark.parametrize(
    ("names", "split", "words"),
    [
        (
            ["validation.jsonl", "test.jsonl"],
            None,
            "splits test, validation: name the files of one, or, with `tamperfuse pair`, choose one with --split",
        ),
        ([TRAIN, TEST], "dev", "splits test, train and not 'dev'"),
        (["data/30k_train-00000-of-00001.parquet", "data/330k_train-00000-of-00001.parquet"], None, "several training"),
        (["train.jsonl", "extra.jsonl"], None, "train.jsonl.*extra.jsonl.*name one of them"),
        (["dataset_info.json"], None, "holds no .*data"),
        (["x.parquet.gz"], None, "holds no .*data"),
    ],
)
def test_folders_that_say_no_one_split_are_refused(
    tmp_path: Path, names: list[str], split: str | None, words: str
) -> None:
    _write(tmp_path, *names)
    with pytest.raises(UserError, match=words):
        shards(tmp_path, split)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "it is a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
        (lambda path: path.symlink_to("/proc/self/environ"), "file of the operating system"),
        (lambda path: path.symlink_to("nothing"), "a link to something that does not exist"),
        (lambda path: path.symlink_to(path.name), "loop of links"),
        (
            lambda path: os.rename(path.with_name("a.jsonl"), os.fsencode(path.parent) + b"/\xff.jsonl"),
            "not UTF-8: rename",
        ),
    ],
)
def test_what_is_no_file_is_refused_before_it_is_opened(
    tmp_path: Path, make: Callable[[Path], Any], words: str
) -> None:
    _write(tmp_path, "a.jsonl")
    make(tmp_path / "b.jsonl")
    with pytest.raises(UserError, match=words):
        list(read_source(str(tmp_path)))
    if words != "not UTF-8: rename":
        with pytest.raises(UserError, match=f"{words}|does not exist"):
            list(read_source(str(tmp_path / "b.jsonl")))


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    _write(tmp_path, "elsewhere/x.jsonl", "data/a.jsonl")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "loop").symlink_to("loop")
    assert _names(tmp_path / "data") == ["a.jsonl", "more/x.jsonl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_no_silent_loss(tmp_path: Path) -> None:
    _write(tmp_path, "a.jsonl", "b/c.jsonl")
    (tmp_path / "b").chmod(0)
    with pytest.raises(UserError, match="permission denied"):
        shards(tmp_path)


@pytest.mark.parametrize(
    "source",
    ["~nobody-of-this-name/x.jsonl", "x" * 300 + ".jsonl", "/".join(["y" * 200] * 30), "a\0b.jsonl", "\udcff.jsonl"],
)
def test_paths_that_no_file_can_have_are_sentences(source: str) -> None:
    with pytest.raises(UserError):
        list(read_source(source))


CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - {split: big_train, path: "round0/big/train.jsonl.gz"}
  - {split: small_train, path: "round0/small/train.jsonl.gz"}
  - {split: big_test, path: ["round0/big/t*.gz"]}
---
# A data set
"""


def test_the_card_of_a_data_set_says_which_files_are_of_which_split(tmp_path: Path) -> None:
    _write(tmp_path, "round0/big/train.jsonl.gz", "round0/small/train.jsonl.gz", "round0/big/test.jsonl.gz")
    (tmp_path / "README.md").write_text(CARD)
    with pytest.raises(UserError, match=r"several training splits .big_train, small_train.: name the files of one"):
        shards(tmp_path)
    assert _names(tmp_path, "small_train") == ["round0/small/train.jsonl.gz"]
    (tmp_path / "README.md").write_text("---\nconfigs:\n- {config_name: a}\n- {config_name: b}\n---\n")
    with pytest.raises(UserError, match=r"several configurations \(a, b"):
        shards(tmp_path)
    (tmp_path / "README.md").write_text("---\nconfigs: [*x]\n---\n")
    assert len(_names(tmp_path)) == 2, "a card that cannot be read says nothing"


def test_one_revision_of_a_data_set_in_the_cache_of_the_hub_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "datasets--owner--name"
    for revision in ("1a", "2b"):
        _write(folder, f"blobs/{revision}.jsonl", f"snapshots/{revision}/data/train.jsonl")
    _write(folder, "refs/main")
    (folder / "refs" / "main").write_text("2b")
    assert _names(folder) == ["snapshots/2b/data/train.jsonl"]
    assert [example.origin for example in read_source(str(folder))] == [
        "datasets--owner--name/snapshots/2b/data/train.jsonl#1"
    ]
    (folder / "refs" / "main").unlink()
    with pytest.raises(UserError, match=r"the revisions 1a, 2b of a data set: name the folder of one, such as .*1a"):
        shards(folder)
