"""Pairs in layouts that training libraries load without conversion, written from `pairs.parquet` a row at a time."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tamperfuse.corpora.examples import Pair
from tamperfuse.pairing.store import TABLE, count_pairs, iter_pairs
from tamperfuse.records.progress import progress
from tamperfuse.records.yaml import dump_yaml

Message = dict[str, str]
NAME = "tamperfuse_pairs"


def messages(pair: Pair) -> list[Message]:
    """A pair as OpenAI messages, the response last."""
    return [*pair.prompt_messages, {"role": "assistant", "content": pair.response}]


def prompt_completion(pair: Pair) -> dict[str, list[Message]]:
    """A pair as TRL's conversational prompt–completion row: the loss is on the completion only."""
    conversation = messages(pair)
    return {"prompt": conversation[:-1], "completion": conversation[-1:]}


def write_exports(folder: Path, names: Iterable[str]) -> None:
    """Write layouts to `folder`/exports.

    Args:
        folder: holds `pairs.parquet`.
        names: of :data:`EXPORTS`.
    """
    for name in sorted(set(names)):
        target = folder / "exports" / name
        target.mkdir(parents=True)
        EXPORTS[name](target, folder / TABLE)


def _trl(target: Path, table: Path) -> None:
    _lines(target / "train.jsonl", map(prompt_completion, _iterate(table)))


def _openai(target: Path, table: Path) -> None:
    """OpenAI messages; earlier answers have the weight 0, with which they are not trained on."""
    _lines(target / "train.jsonl", ({"messages": _weighted(pair)} for pair in _iterate(table)))


def _weighted(pair: Pair) -> list[dict[str, Any]]:
    """The messages of a pair; the answers before the last have `weight` 0, since only the last is to be learned."""
    turns: list[dict[str, Any]] = [dict(message) for message in messages(pair)]
    for turn in turns[:-1]:
        if turn["role"] == "assistant":
            turn["weight"] = 0
    return turns


def _sharegpt(target: Path, table: Path) -> None:
    """ShareGPT rows, with a dataset_info.json through which LLaMA-Factory loads the file; weights as in OpenAI messages."""

    def row(pair: Pair) -> dict[str, Any]:
        names = {"user": "human", "assistant": "gpt"}
        turns = _weighted(pair)
        return {"conversations": [{"from": names[t.pop("role")], "value": t.pop("content"), **t} for t in turns]}

    _array(target / "train.json", map(row, _iterate(table)))
    columns = {"messages": "conversations"}
    _info(target, {"file_name": "train.json", "formatting": "sharegpt", "columns": columns})


def _alpaca(target: Path, table: Path) -> None:
    """Alpaca rows, with LLaMA-Factory's `history` for earlier turns."""

    def row(pair: Pair) -> dict[str, Any]:
        history = [list(turn) for turn in pair.history]
        return {"instruction": pair.prompt, "input": "", "output": pair.response, "history": history}

    _array(target / "train.json", map(row, _iterate(table)))
    columns = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
    _info(target, {"file_name": "train.json", "formatting": "alpaca", "columns": columns})


def _axolotl(target: Path, table: Path) -> None:
    """Messages and the part of an Axolotl configuration that reads them; only the last turn is trained on."""

    def row(pair: Pair) -> dict[str, Any]:
        conversation: list[dict[str, Any]] = [{**message, "train": False} for message in messages(pair)]
        conversation[-1]["train"] = True
        return {"messages": conversation}

    _lines(target / "train.jsonl", map(row, _iterate(table)))
    entry = {
        "path": "train.jsonl",
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        "message_property_mappings": {"role": "role", "content": "content"},
        "message_field_training": "train",
        "roles_to_train": [],
    }
    config = {"chat_template": "tokenizer_default", "datasets": [entry], "train_on_inputs": False}
    (target / "axolotl.yaml").write_text(dump_yaml(config), encoding="utf-8")


def _datasets(target: Path, table: Path) -> None:
    """A folder for `datasets.load_from_disk`: TRL's columns and those of the pair."""
    import tempfile

    import datasets

    datasets.disable_progress_bars()

    turn = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    columns = {"prompt": [turn], "completion": [turn]}
    features = datasets.Features(
        columns
        | {name: datasets.Value("string") for name in _PAIR_COLUMNS[:-1]}
        | {_PAIR_COLUMNS[-1]: datasets.Value("float64")}
    )
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        dataset = datasets.Dataset.from_generator(
            _rows, features=features, gen_kwargs={"table": str(table)}, cache_dir=scratch
        )
        dataset.save_to_disk(str(target))


_PAIR_COLUMNS = ("category", "prompt_origin", "response_origin", "kind", "similarity")


def _rows(table: str) -> Iterator[dict[str, Any]]:
    for pair in _iterate(Path(table)):
        yield prompt_completion(pair) | {name: getattr(pair, name) for name in _PAIR_COLUMNS}


EXPORTS: dict[str, Callable[[Path, Path], None]] = {
    "trl": _trl,
    "openai": _openai,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "axolotl": _axolotl,
    "datasets": _datasets,
}


def _iterate(table: Path) -> Iterator[Pair]:
    """The pairs one by one, with a progress bar."""
    with progress("exporting", count_pairs(table)) as advance:
        for pair in iter_pairs(table):
            yield pair
            advance(1)


def _lines(path: Path, rows: Iterable[Any]) -> None:
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def _array(path: Path, rows: Iterable[Any]) -> None:
    with path.open("w", encoding="utf-8") as out:
        for number, row in enumerate(rows):
            out.write((",\n" if number else "[\n") + json.dumps(row, ensure_ascii=False))
        out.write("\n]\n")


def _info(target: Path, entry: dict[str, Any]) -> None:
    (target / "dataset_info.json").write_text(json.dumps({NAME: entry}, indent=2) + "\n", encoding="utf-8")
