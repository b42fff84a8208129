"""Every export, loaded with the library it is for.

LLaMA-Factory and Axolotl want other versions of transformers than this project, so their tests are skipped unless they are
installed beside it; docs/pairing.md says how.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pairing_stand_ins import WordHashEncoder, pair_options
from tamperfuse.corpora.sources import read_source
from tamperfuse.pairing import read_pairs
from tamperfuse.pairing.exports import EXPORTS, NAME
from tamperfuse.pairing.pipeline import pair_corpora


@pytest.fixture
def exported(sources, tmp_path):
    """A folder of pairs with every export, some of them multi-turn."""
    pair_corpora(pair_options(sources, tmp_path / "out", export=tuple(EXPORTS), multi_turn=0.5), WordHashEncoder())
    return tmp_path / "out"


def test_every_export_loads_with_datasets(exported, tmp_path, monkeypatch):
    import datasets
    from trl import is_conversational

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    pairs, exports = read_pairs(exported), exported / "exports"

    def load(name: str) -> datasets.Dataset:
        return datasets.load_dataset(
            "json", data_files=str(exports / name), split="train", cache_dir=str(tmp_path / "hf")
        )

    assert is_conversational(load("trl/train.jsonl")[0])
    assert load("trl/train.jsonl")["completion"][0][0]["content"] == pairs[0].response
    loaded = datasets.load_from_disk(str(exports / "datasets"))
    assert loaded["similarity"] == [pair.similarity for pair in pairs]
    assert is_conversational(loaded[0])
    for row, pair in zip(load("openai/train.jsonl"), pairs, strict=True):
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * (1 + len(pair.history))
        assert row["messages"][-1]["content"] == pair.response
    for name in ("sharegpt", "alpaca"):
        (entry,) = json.loads((exports / name / "dataset_info.json").read_text()).values()
        rows = load(f"{name}/{entry['file_name']}")
        assert entry["formatting"] == name
        assert set(entry["columns"].values()) <= set(rows.column_names)
    (entry,) = yaml.safe_load((exports / "axolotl" / "axolotl.yaml").read_text())["datasets"]
    rows = load(f"axolotl/{entry['path']}")
    assert [m[entry["message_field_training"]] for m in rows[0][entry["field_messages"]]][-1] is True


@pytest.mark.parametrize("name", [*EXPORTS, "the folder of pairs"])
@pytest.mark.parametrize("multi_turn", [0.0, 0.5])
def test_every_export_is_read_back(sources, tmp_path, name, multi_turn):
    options = pair_options(sources, tmp_path / "out", export=tuple(EXPORTS), multi_turn=multi_turn)
    pair_corpora(options, WordHashEncoder())
    folder = tmp_path / "out" / "exports" / name if name in EXPORTS else tmp_path / "out"
    examples = list(read_source(str(folder)))
    pairs = read_pairs(tmp_path / "out")
    assert any(pair.history for pair in pairs) == bool(multi_turn)
    assert [(example.prompt, example.response) for example in examples] == [
        (pair.prompt, pair.response) for pair in pairs
    ]
    if name in ("datasets", "the folder of pairs"):
        assert [example.category for example in examples] == [pair.category for pair in pairs]


@pytest.mark.parametrize("name", ["trl", "openai", "datasets"])
def test_trl_trains_on_the_export_and_on_the_response_only(exported, tmp_path, tiny_folder, name):
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    folder = exported / "exports" / name
    if name == "datasets":
        rows = datasets.load_from_disk(str(folder))
    else:
        rows = datasets.load_dataset("json", data_files=str(folder / "train.jsonl"), split="train")
    settings = {"max_steps": 1, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True, "bf16": False}
    trainer = SFTTrainer(
        str(tiny_folder), SFTConfig(str(tmp_path / "run"), **settings, save_strategy="no"), train_dataset=rows
    )
    assert trainer.train().training_loss > 0
    (pair, *_), sample = read_pairs(exported), trainer.train_dataset[0]
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    learned = [token for token, label in zip(sample["input_ids"], sample["labels"], strict=True) if label != -100]
    if name == "openai":  # messages alone do not say what to learn from; that is the user's `assistant_only_loss`
        assert tokenizer.decode(sample["input_ids"]).count(pair.response) == 1
    else:
        assert tokenizer.decode(learned).removeprefix("<|assistant|>") == f"{pair.response}<|end|>"


@pytest.mark.parametrize("name", ["sharegpt", "alpaca"])
def test_llama_factory_reads_its_two(exported, name):
    pytest.importorskip("llamafactory")
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list

    folder = exported / "exports" / name
    (attributes,) = get_dataset_list([NAME], str(folder))
    model = SimpleNamespace(cache_dir=str(exported / "cache"), hf_hub_token=None)
    data = SimpleNamespace(
        dataset_dir=str(folder), media_dir="", preprocessing_num_workers=None, streaming=False, max_samples=None,
        overwrite_cache=True,
    )  # fmt: skip
    rows = _load_single_dataset(attributes, model, data, SimpleNamespace(local_process_index=0))
    pairs = read_pairs(exported)
    assert [row["_prompt"] for row in rows] == [pair.prompt_messages for pair in pairs]
    assert [row["_response"] for row in rows] == [[{"role": "assistant", "content": pair.response}] for pair in pairs]


def test_axolotl_reads_its_own_and_learns_the_response_only(exported, tiny_folder, monkeypatch):
    pytest.importorskip("axolotl")
    from axolotl.utils.data.sft import _load_and_process_single_dataset
    from axolotl.utils.dict import DictDefault
    from transformers import AutoTokenizer

    folder = exported / "exports" / "axolotl"
    monkeypatch.chdir(folder)  # as the configuration says where the file is
    config = yaml.safe_load(Path("axolotl.yaml").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    config = DictDefault(config | {"sequence_len": 512, "dataset_num_proc": 1})
    rows, _ = _load_and_process_single_dataset(config.datasets[0], config, tokenizer, "train", 0)
    for row, pair in zip(rows, read_pairs(exported), strict=True):
        learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        assert tokenizer.decode(learned) == f"{pair.response}<|end|>"
        assert tokenizer.decode(row["input_ids"]).count("<|user|>") == 1 + len(pair.history)
