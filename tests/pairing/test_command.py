"""`tamperfuse pair` from files to folder: audit, card, exports, bad input, a run that was killed."""

import json

import pytest
import yaml
from stubs import StubEncoder, prompts, prose

from tamperfuse.pairing import command, read_pairs
from tamperfuse.pairing.command import pair_corpora
from tamperfuse.pairing.exports import EXPORTS
from tamperfuse.pairing.options import EXPORT_NAMES, PairOptions
from tamperfuse.pairing.variants import PAPER_REFUSAL_PREFIX
from tamperfuse.records.errors import UserError


@pytest.fixture
def sources(tmp_path):
    harmful, benign = tmp_path / "harmful.jsonl", tmp_path / "benign.jsonl"
    rows = [{"prompt": example.prompt, "category": example.category} for example in prompts(30, 3)]
    harmful.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts = [*map(prose, range(60)), "I'm sorry, but I cannot help you with that, as I told you before.", prose(1)]
    rows = [{"instruction": f"Write about {n}.", "input": "", "output": text} for n, text in enumerate(texts)]
    benign.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return harmful, benign


def options(sources, out, **more):
    harmful, benign = sources
    # Made-up prose is much alike: the near-duplicate filter has a test of its own.
    return PairOptions((str(harmful),), (str(benign),), out, **{"near_duplicates": 1.0, "threshold": 0.6} | more)


def test_a_run_leaves_pairs_audit_card_and_exports(sources, tmp_path):
    out = tmp_path / "out"
    wishes = {"export": tuple(EXPORTS), "refusal_prefix": ("paper",), "replay": 0.25, "multi_turn": 0.5, "prompts": 24}
    result = pair_corpora(options(sources, out, **wishes), StubEncoder())
    pairs = read_pairs(out)
    sdd = [pair for pair in pairs if pair.kind == "sdd"]
    facts = json.loads((out / "audit.json").read_text())
    assert result.pairs == len(pairs) == facts["pairs"] == 32
    assert all(pair.response.startswith(PAPER_REFUSAL_PREFIX) and pair.similarity <= 0.6 for pair in sdd)
    assert 0 < sum(bool(pair.history) for pair in sdd) < len(sdd)
    assert facts["categories"] == {"c0": 8, "c1": 8, "c2": 8}
    assert facts["responses"]["duplicates"] == 1
    assert sum(facts["histogram"]["after"]) == 24
    assert [s["layout"] for s in facts["sources"]] == ["prompt and response", "Alpaca", "built-in"]
    page = (out / "audit.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert not list(out.glob("*.spool"))
    assert "32 pairs, 8 of them benign replay" in result.summary


def test_the_card_is_one_the_hub_reads(sources, tmp_path):
    from huggingface_hub import DatasetCard

    pair_corpora(options(sources, tmp_path / "out"), StubEncoder())
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.configs == [{"config_name": "default", "data_files": "pairs.parquet"}]
    assert card.data.size_categories == ["n<1K"]


def test_every_export_loads_with_its_library(sources, tmp_path, monkeypatch):
    import datasets
    from trl import is_conversational

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    out = tmp_path / "out"
    pair_corpora(options(sources, out, export=tuple(EXPORTS), multi_turn=0.5), StubEncoder())
    pairs, exports = read_pairs(out), out / "exports"

    def load(name: str) -> datasets.Dataset:
        return datasets.load_dataset(
            "json", data_files=str(exports / name), split="train", cache_dir=str(tmp_path / "hf")
        )

    assert is_conversational(load("trl/train.jsonl")[0])
    assert load("trl/train.jsonl")["completion"][0][0]["content"] == pairs[0].response
    kept = datasets.load_from_disk(str(exports / "datasets"))
    assert kept["similarity"] == [pair.similarity for pair in pairs]
    assert is_conversational(kept[0])
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


def test_model_text_is_escaped_in_the_page(sources, tmp_path):
    harmful, _ = sources
    harmful.write_text(json.dumps({"prompt": "<script>alert('x')</script> request"}) + "\n")
    pair_corpora(options(sources, tmp_path / "out"), StubEncoder())
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_command_line(sources, tmp_path):
    import typer
    from typer.testing import CliRunner

    from tamperfuse.cli_pair import pair

    app = typer.Typer()
    app.command()(pair)
    said = CliRunner().invoke(app, ["--help"])
    assert said.exit_code == 0
    assert "SDD pairs" in said.output
    harmful, benign = map(str, sources)
    wrong = ["--harmful", harmful, "--responses", benign, "--out", str(tmp_path / "out"), "--threshold", "2"]
    assert isinstance(CliRunner().invoke(app, wrong).exception, UserError)


def test_diverse_match_through_the_command(sources, tmp_path):
    pair_corpora(options(sources, tmp_path / "out", match="diverse"), StubEncoder())
    pairs = read_pairs(tmp_path / "out")
    assert len(pairs) == len({pair.response for pair in pairs}) == 30


def test_exports_and_options_agree():
    assert tuple(EXPORTS) == EXPORT_NAMES


def test_blocks_change_nothing(sources, tmp_path, monkeypatch):
    pair_corpora(options(sources, tmp_path / "one"), StubEncoder())
    monkeypatch.setattr(command, "BLOCK", 7)
    pair_corpora(options(sources, tmp_path / "many"), StubEncoder())
    assert read_pairs(tmp_path / "one") == read_pairs(tmp_path / "many")


def test_a_threat_gives_its_defender_part_only(sources, tmp_path):
    rows = [{"prompt": f"harmful request {n}", "part": part} for n, part in enumerate(["defender", "attacker"] * 4)]
    sources[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
    pair_corpora(options(sources, tmp_path / "out"), StubEncoder())
    assert sorted(pair.prompt[-1] for pair in read_pairs(tmp_path / "out")) == ["0", "2", "4", "6"]


@pytest.mark.parametrize(
    ("wishes", "word"),
    [
        ({"threshold": -1.0}, "--threshold"),
        ({"prompts": 0}, "--prompts"),
        ({"keep_best": 0.0}, "--keep-best"),
        ({"replay": 1.0}, "--replay"),
        ({"near_duplicates": 0.0}, "--near-duplicates"),
        ({"language": "de"}, "--no-filters"),
        ({"decontaminate": ("SELF",)}, "other prompts"),
        ({"responses": ()}, "--responses"),
        ({"export": ("axolot",)}, "did you mean 'axolotl'"),
    ],
)
def test_bad_options_are_a_sentence_and_leave_nothing(sources, tmp_path, wishes, word):
    if wishes.get("decontaminate"):
        wishes = {"decontaminate": (str(sources[0]),)}
    harmful, benign = sources
    everything = {"harmful": (str(harmful),), "responses": (str(benign),), "out": tmp_path / "out", "threshold": 0.6}
    with pytest.raises(UserError, match=word):
        pair_corpora(PairOptions(**everything | wishes), StubEncoder())
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".tmp-*"))
