"""`tamperfuse pair` from files to folder: audit, card, exports, bad input, a run that was killed."""

import io
import json
import random
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from pairing_stand_ins import WordHashEncoder, hash_projection, pair_options, prose
from tamperfuse.cli.pair import pair
from tamperfuse.corpora.examples import PAPER_REFUSAL_PREFIX
from tamperfuse.corpora.hub import HubSource
from tamperfuse.pairing import pairs as pairs_module
from tamperfuse.pairing import pipeline, read_pairs
from tamperfuse.pairing.cache import in_batches
from tamperfuse.pairing.encoding import CachedEncoder
from tamperfuse.pairing.exports import EXPORTS
from tamperfuse.pairing.options import EXPORT_NAMES, PairOptions
from tamperfuse.pairing.pipeline import PairResult, pair_corpora
from tamperfuse.pairing.prompts import EvaluationPrompts, PromptReport
from tamperfuse.pairing.source_records import _hub_facts
from tamperfuse.records.errors import UserError
from tamperfuse.records.progress import show_progress


def test_a_run_leaves_pairs_audit_card_and_exports(sources, tmp_path):
    out = tmp_path / "out"
    wishes = {"export": tuple(EXPORTS), "refusal_prefix": ("paper",), "replay": 0.25, "multi_turn": 0.5, "prompts": 24}
    result = pair_corpora(pair_options(sources, out, **wishes), WordHashEncoder())
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
    assert not list(out.glob("*.pool"))
    assert "32 pairs, 8 of them benign replay" in result.summary


def test_the_card_is_one_the_hub_reads(sources, tmp_path):
    from huggingface_hub import DatasetCard

    pair_corpora(pair_options(sources, tmp_path / "out"), WordHashEncoder())
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.configs == [{"config_name": "default", "data_files": "pairs.parquet"}]
    assert card.data.size_categories == ["n<1K"]


def test_model_text_is_escaped_in_the_page(sources, tmp_path):
    harmful, _ = sources
    harmful.write_text(json.dumps({"prompt": "<script>alert('x')</script> request"}) + "\n")
    pair_corpora(pair_options(sources, tmp_path / "out"), WordHashEncoder())
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


REQUIRED = {"harmful": ("h.jsonl",), "responses": ("r.jsonl",), "out": Path("out")}
OTHER_VALUES = {
    "prompt_field": "a",
    "response_field": "b",
    "category_field": "c",
    "revision": "main",
    "split": "test",
    "prompts": 7,
    "decontaminate": ("d.jsonl", "e.jsonl"),
    "threshold": 0.5,
    "seed": 3,
    "max_draws": 9,
    "match": "diverse",
    "filters": False,
    "language": "de",
    "near_duplicates": 0.7,
    "score_quality": "model",
    "keep_best": 0.9,
    "refusal_prefix": ("paper", "No."),
    "multi_turn": 0.1,
    "replay": 0.2,
    "replay_source": "builtin:retain",
    "encoder": "encoder",
    "dtype": "bfloat16",
    "workers": 2,
    "executor": "ray",
    "tokenizer": "tokenizer",
    "export": ("trl", "openai"),
}


def command_line(values: dict) -> list[str]:
    arguments = []
    for name, value in values.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(option if value else option.replace("--", "--no-", 1))
        else:
            arguments += [
                part for item in (value if isinstance(value, tuple) else (value,)) for part in (option, str(item))
            ]
    return arguments


@pytest.mark.parametrize("values", [REQUIRED, REQUIRED | OTHER_VALUES])
def test_every_field_of_the_options_is_an_option_of_the_command(monkeypatch, values):
    received = []
    monkeypatch.setattr(
        pipeline, "pair_corpora", lambda options: received.append(options) or PairResult(Path(), "", 0, 0)
    )
    app = typer.Typer()
    app.command()(pair)
    done = CliRunner().invoke(app, command_line(values))
    assert done.exit_code == 0, done.output
    assert received == [PairOptions(**values)]
    assert {field.name for field in fields(PairOptions)} == REQUIRED.keys() | OTHER_VALUES.keys()


def test_diverse_match_through_the_command(sources, tmp_path):
    pair_corpora(pair_options(sources, tmp_path / "out", match="diverse"), WordHashEncoder())
    pairs = read_pairs(tmp_path / "out")
    assert len(pairs) == len({pair.response for pair in pairs}) == 30


def test_rows_without_a_text_are_counted(sources, tmp_path):
    for path, blank in zip(sources, ({"prompt": " "}, {"instruction": "x", "output": ""}), strict=True):
        with path.open("a") as out:
            out.write(json.dumps(blank) + "\n")
    pair_corpora(pair_options(sources, tmp_path / "out"), WordHashEncoder())
    facts = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (facts["prompts"]["read"], facts["prompts"]["empty"]) == (30, 1)
    assert (facts["responses"]["read"], facts["responses"]["empty"]) == (62, 1)


def test_a_response_that_several_blocks_draw_counts_as_encoded_once(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs_module, "BLOCK", 7)
    benign = sources[1]
    benign.write_text("".join(benign.read_text().splitlines(keepends=True)[:6]))
    pair_corpora(pair_options(sources, tmp_path / "out", threshold=1.0), WordHashEncoder())
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["encoded_responses"] == 6


def test_sources_of_one_name_are_told_apart_and_their_licence_is_what_their_card_says(sources, tmp_path):
    for number, name in enumerate(("lima", "alpaca")):
        (tmp_path / name).mkdir()
        rows = [{"instruction": f"Write {n}.", "output": prose(n)} for n in range(number, 80, 2)]
        (tmp_path / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "lima" / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\n# LIMA\n")
    paths = tuple(str(tmp_path / name / "train.jsonl") for name in ("lima", "alpaca"))
    pair_corpora(pair_options(sources, tmp_path / "out", responses=paths), WordHashEncoder())
    origins = {pair.response_origin.split("#")[0] for pair in read_pairs(tmp_path / "out")}
    assert origins == {"lima/train.jsonl", "alpaca/train.jsonl"}
    licences = {s["source"]: s["licence"] for s in json.loads((tmp_path / "out" / "audit.json").read_text())["sources"]}
    assert licences["lima/train.jsonl"] == "cc-by-nc-sa-4.0 (by its README.md)"
    assert licences["alpaca/train.jsonl"] == "not stated: local file"


@pytest.mark.parametrize("match", ["random", "diverse"])
def test_the_order_of_files_options_and_rows_changes_no_pair(sources, tmp_path, match):
    harmful, benign = (path.read_text().splitlines(keepends=True) for path in sources)
    again = json.dumps({"prompt": "Harmful request 3 about thing3!", "category": "c7"}) + "\n"
    pair_lists = []
    for seed in range(3):
        rng, folder = random.Random(seed), tmp_path / str(seed)
        (folder / "harmful").mkdir(parents=True)
        shuffled = [rng.sample(rows, len(rows)) for rows in ([*harmful, again], benign)]
        cut = rng.randrange(1, len(harmful))
        parts = [shuffled[0][:cut], shuffled[0][cut:], shuffled[1][:20], shuffled[1][20:]]
        names = [folder / "harmful" / "a.jsonl", folder / "harmful" / "b.jsonl", folder / "c.jsonl", folder / "d.jsonl"]
        for path, rows in zip(names, parts, strict=True):
            path.write_text("".join(rows))
        answers = tuple(map(str, rng.sample(names[2:], 2)))
        wishes = {"responses": answers, "match": match, "prompts": 20, "refusal_prefix": ("A.", "B.")}
        pair_corpora(pair_options((folder / "harmful", benign), folder / "out", **wishes), WordHashEncoder())
        pair_lists.append([(p.prompt, p.response, p.category, p.similarity) for p in read_pairs(folder / "out")])
    assert pair_lists[0] == pair_lists[1] == pair_lists[2]
    assert len(pair_lists[0]) == 20


def test_progress_is_shown_where_it_is_asked_for(sources, tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    encoder = CachedEncoder("hash projection", in_batches(hash_projection), tmp_path / "vectors")
    show_progress(console)
    try:
        pair_corpora(pair_options(sources, tmp_path / "out", export=("trl",), replay=0.1, multi_turn=0.5), encoder)
    finally:
        show_progress(None)
    said = console.file.getvalue()
    for work in ("reading prompts", "reading responses", "filtering", "encoding", "exporting", "hashing sources"):
        assert work in said, work


def test_exports_and_options_agree():
    assert tuple(EXPORTS) == EXPORT_NAMES


def test_blocks_change_nothing(sources, tmp_path, monkeypatch):
    pair_corpora(pair_options(sources, tmp_path / "one"), WordHashEncoder())
    monkeypatch.setattr(pairs_module, "BLOCK", 7)
    pair_corpora(pair_options(sources, tmp_path / "many"), WordHashEncoder())
    assert read_pairs(tmp_path / "one") == read_pairs(tmp_path / "many")


def test_a_threat_gives_its_defender_part_only(sources, tmp_path):
    rows = [{"prompt": f"harmful request {n}", "part": part} for n, part in enumerate(["defender", "attacker"] * 4)]
    sources[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
    pair_corpora(pair_options(sources, tmp_path / "out"), WordHashEncoder())
    assert sorted(pair.prompt[-1] for pair in read_pairs(tmp_path / "out")) == ["0", "2", "4", "6"]


@pytest.mark.parametrize(
    ("wishes", "word"),
    [
        ({"threshold": -1.0}, "--threshold"),
        ({"prompts": 0}, "--prompts"),
        ({"keep_best": 0.0, "score_quality": "x"}, "--keep-best"),
        ({"keep_best": 0.1}, "give --score-quality as well"),
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
        pair_corpora(PairOptions(**everything | wishes), WordHashEncoder())
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_prompts_of_two_sources_count_once_and_keep_the_weights(order, sources, tmp_path):
    weights = {"a": 3, "b": 1}
    for name, numbers in (("a", range(60)), ("b", range(30, 90))):
        rows = [json.dumps({"prompt": f"request number {n}"}) for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    harmful = tuple(f"{tmp_path / f'{name}.jsonl'}={weights[name]}" for name in order)
    options = pair_options(sources, tmp_path / "out", harmful=harmful)
    prompts = pipeline._prepare_prompts(options, EvaluationPrompts([], WordHashEncoder()), PromptReport())
    assert Counter("a" if "a.jsonl" in prompt.origin else "b" for prompt in prompts) == {"a": 60, "b": 20}
    assert len({prompt.prompt for prompt in prompts}) == 80


def test_a_hub_that_does_not_answer_at_the_end_costs_a_fact_only(monkeypatch):
    class Api:
        def dataset_info(self, *_, **__):
            raise Exception("the connection was lost")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert _hub_facts(HubSource("owner/name", None, None, None)) == ("not stated: the Hub did not answer", "")
