"""The cost tables: numbers that can be checked by hand, writing into a page, bad input."""

import importlib
import io
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tamperfuse.study.estimates import Costs
from tamperfuse.training.accelerations import MemoryEstimate

ROOT = Path(__file__).parents[2]
GB = 10**9


@pytest.fixture(scope="module")
def model_of() -> Any:
    """`Model.of`, which takes seconds, once for every shape."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return cache(importlib.import_module("cost_model").Model.of)


@pytest.fixture
def model(model_of: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    module = importlib.import_module("cost_model")
    monkeypatch.setattr(module.Model, "of", model_of)
    return module


@pytest.fixture
def script(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with two fixed rows: the plan of the demo study would need the bundled model."""
    module = importlib.import_module("cost_table")
    rows = [model.Work("tuning", "full", Costs(3_600_000)), model.Work("asking", "evaluation", Costs(0, 3_600, 7_200))]
    monkeypatch.setattr(module, "works", lambda study: rows)
    return module


def figures(**methods: dict[str, Any]) -> str:
    """At 100 and 400 million parameters: 1,000 tokens/s and 500."""
    sizes = {"100M": {"parameters": 10**8, "rate": 1000.0}, "400M": {"parameters": 4 * 10**8, "rate": 500.0}}
    measured = dict.fromkeys(("full", "lora", "generation", "scoring"), sizes) | methods
    return json.dumps({"benchmark": "size_scaling", "date": "2026-01-01", "measured": measured})


def test_hours_come_from_the_nearest_size(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text(figures())
    read = model.Figures.read([str(path)])
    assert [read.product("full", n * 10**6) for n in (50, 199, 201, 70_000)] == [1e11, 1e11, 2e11, 2e11]
    work = model.Work("tuning", "full", Costs(3_600_000))
    assert work.cpu_hours(model.Model(10**9, {}, {}), read) == pytest.approx(5.0)  # 3.6e6 × 1e9 / 2e11 / 3600
    assert model.Work("memory", "qlora", Costs()).cpu_hours(model.Model(10**9, {}, {}), read) == 0


def test_accelerator_hours_are_operations_over_peak_rate_and_utilisation(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "PEAK", 1e15)
    small = MemoryEstimate(weights=2 * GB, trained=GB, activations=GB, checkpointed=GB)
    one = model.Model(GB, {"full": 6e9}, {"full": small, "evaluation": small})
    tuning = model.Work("tuning", "full", Costs(3_600_000))
    assert tuning.accelerator_hours(one) == pytest.approx(3.6e6 * 6e9 / 0.4e15 / 3600)
    asking = model.Work("asking", "evaluation", Costs(0, 3_600, 7_200))
    assert asking.accelerator_hours(one) == pytest.approx(2e9 * (3_600 / 0.1e15 + 7_200 / 0.4e15) / 3600)
    large = MemoryEstimate(weights=2 * GB, trained=GB, activations=90 * GB, checkpointed=2 * GB)
    again = model.Model(GB, {"full": 6e9}, {"full": large})
    assert tuning.accelerator_hours(again) == pytest.approx(tuning.accelerator_hours(one) * 4 / 3)


@pytest.mark.parametrize(
    ("need", "expected"),
    [
        (
            MemoryEstimate(weights=14 * GB, trained=7 * GB, activations=20 * GB, checkpointed=2 * GB),
            (3, False),
        ),  # 112 / (72 − 20)
        (
            MemoryEstimate(weights=140 * GB, trained=70 * GB, activations=80 * GB, checkpointed=2 * GB),
            (16, True),
        ),  # 1,120 / (72 − 2)
        (MemoryEstimate(weights=60 * GB, trained=0, activations=12 * GB, checkpointed=2 * GB), (1, False)),
        (MemoryEstimate(weights=61 * GB, trained=0, activations=12 * GB, checkpointed=2 * GB), (2, False)),
    ],
)
def test_the_number_of_accelerators_follows_from_memory(
    model: Any, need: MemoryEstimate, expected: tuple[int, bool]
) -> None:
    assert model.Work("", "full", Costs()).accelerators(model.Model(1, {}, {"full": need})) == expected


def test_tokens_of_every_row(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [SimpleNamespace(expected=Costs(1, 2, 3)), SimpleNamespace(expected=Costs(10, 20, 30))]
    monkeypatch.setattr(model, "load_study", lambda path: path)
    monkeypatch.setattr(model.StudyContext, "open", lambda study, run: None)
    monkeypatch.setattr(model, "build_nodes", lambda context: nodes)
    rows = model.works(Path("mine.yaml"))
    # A sample has 42 + 48 tokens: 500 × 24 samples, 50 × 10, and 160 answers of 48 that are scored twice.
    assert [row.costs for row in rows[3:]] == [
        Costs(1_080_000),
        Costs(45_000),
        Costs(0, 7_680, 28_800),
        Costs(11, 22, 33),
    ]
    assert rows[-1].label == "study `mine`"


def test_costs_of_the_sizes(model: Any) -> None:
    """Parameters as published; 6 operations a weight and token in full, 4 under an adapter, but for the vocabulary's share."""
    for size, parameters in (
        ("135M", 134_515_008),
        ("1B", 1_235_814_400),
        ("7B", 6_738_415_616),
        ("8B", 8_030_261_248),
        ("70B", 68_976_648_192),
    ):
        size_costs = model.Model.of(model.SHAPES[size][1])
        assert size_costs.parameters == parameters
        assert model.Shards.of(model.SHAPES[size][1]).parameters == parameters
        assert 0.9 < size_costs.operations["full"] / (6 * parameters) <= 1
        assert 0.9 < size_costs.operations["lora"] / (4 * parameters) <= 1.01
        needs = size_costs.needs
        assert needs["full"].total(False, 8) - needs["full"].activations == 16 * parameters
        adapter = needs["lora"].trained
        assert needs["lora"].weights == 6 * parameters + 2 * adapter and adapter < parameters / 25
        assert 1.0 < (needs["lora"].weights - needs["qlora"].weights) / parameters <= 1.5
    # Llama 2 70B: 80 layers × 8 heads × 128, keys and values, 2 bytes, of 16,384 tokens.
    cache = size_costs.needs["evaluation"].weights - 6 * parameters
    assert cache == 2 * 80 * 8 * 128 * 2 * 16_384


def test_memory_of_a_process_in_shards(model: Any) -> None:
    """A toy Llama: 10 words, width 4, an MLP of 6, 3 blocks of 4 heads with 2 key-value heads."""
    shards = model.Shards.of((10, 4, 6, 3, 4, 2, False), tokens=5)
    assert (shards.block, shards.head) == (2 * 16 + 2 * 8 + 3 * 24 + 8, 40)
    assert shards.parameters == 3 * 128 + 2 * 40 + 4
    assert shards.shard(4) == 4 * shards.parameters  # 16 bytes a parameter over 4 processes
    assert shards.gathered() == 10 * 128  # two blocks in 2 bytes, and 6 bytes of gradients of one
    assert shards.activations == 3 * 5 * 2 * (12 * 4 + 5 * 6)
    assert shards.total(4) == shards.shard(4) + shards.gathered() + shards.activations > shards.total(4, True)
    wide = model.Shards.of((1_000, 4, 6, 3, 4, 2, True))  # the output layer is larger than a block, and gathered twice
    assert wide.parameters == 3 * 128 + 4_000 + 4 and wide.gathered() == 10 * 4_000 + 2 * 128


def test_tables_are_written_into_the_page(script: Any, tmp_path: Path) -> None:
    path, page = tmp_path / "figures.json", tmp_path / "page.md"
    peak = {"benchmark": "training_speed", "peak_bytes_16x128": 4 * 2**30}
    path.write_text(f"{figures()}\n{json.dumps(peak)}\n")
    page.write_text("above\n<!-- tables: python scripts/cost_table.py ? -->\nold\n<!-- end of tables -->\nbelow\n")
    for _ in range(2):
        script.main([str(path), "--price-cpu", "0.5", "--price-gpu", "3", "--write", str(page)])
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("above", "below") and "old" not in lines
    assert lines[1].startswith(f"<!-- tables: python scripts/cost_table.py {path} --price-cpu 0.5 ")
    # 134.5e6 × 3.6e6 / 1e11 / 3600 hours; 16 bytes a parameter, 1.67 GiB of activations, 0.4 of libraries.
    assert "| 135M | tuning | 1.3 | 4.1 | 0.67 |" in lines
    assert any(line.startswith("| 70B | tuning | 345 | 1,102 | ≥ 172 |") for line in lines)
    assert "| full, 16 × 128 tokens | 4.1 | 4.0 | +2% |" in lines
    # 16 bytes × 8.03e9 / 8; 2 × 525e6 + 2 × 218e6 + 6 × 525e6; 32 layers × 2,048 × 2 × (12 × 4,096 + 5 × 14,336).
    assert any(line.startswith("| 8B | 8 | 15.0 | 4.3 | 14.8 | 34.0 | ") for line in lines)
    estimates = [line for line in lines if line.startswith("| 70B | tuning | 17 |")]
    assert len(estimates) == 1 and estimates[0].endswith("| estimate, checkpointing |")


def test_figures_come_from_standard_input_as_well(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(figures()))
    script.main(["-"])
    assert "| 7B | asking |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        (None, [], "cannot be read (No such file or directory)"),
        ("no JSON", [], "does not hold JSON lines of benchmarks"),
        ("[1]", [], "does not hold JSON lines of benchmarks"),
        ('{"benchmark": "training_speed"}', [], "There are no figures of full in"),
        (figures(scoring={}), [], "There are no figures of scoring in"),
        (figures(lora={"135M": {"parameters": 1, "rate": 0}}), [], "There are no figures of lora in"),
        (figures(), ["--price-cpu", "-1"], "'-1' is not a number above 0"),
        (figures(), ["--price-gpu", "nan"], "'nan' is not a number above 0"),
        (figures(), ["--memory-cpu", "much"], "'much' is not a number above 0"),
        (
            figures(),
            ["--write", "PAGE"],
            "has no place for the tables: add the lines <!-- tables: python scripts/cost_table.py ",
        ),
    ],
)
def test_bad_input_is_one_sentence(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, more: list[str], message: str
) -> None:
    path, page = tmp_path / "figures.json", tmp_path / "page.md"
    page.write_text("no marks\n")
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        script.main([str(path), *(str(page) if word == "PAGE" else word for word in more)])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1
    assert page.read_text() == "no marks\n"
