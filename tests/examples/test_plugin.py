"""examples/plugin: installed into a new virtual environment, its defense, attack and judge run through a study."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import tamperfuse
from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.records.summary import read_summary
from tamperfuse.records.yaml import dump_yaml, read_yaml

TESTS = Path(__file__).parents[1]
PLUGIN = TESTS.parent / "examples" / "plugin"
PARTS = ("defender", "attacker", "attacker_dev", "evaluation")
BETWEEN = "== the next command =="

# Two commands in one process, which imports everything once; the sentence encoder and lm-eval are replaced as by the fixture
# `quick_judging`.
COMMANDS = f"""
import sys

sys.path.append({str(TESTS)!r})

from stand_ins import WordCountEncoder, quick_capability
from tamperfuse.cli.app import main
from tamperfuse.models.encoder import set_default_encoder
from tamperfuse.study import observe
from tamperfuse.study.results import intervals

set_default_encoder(WordCountEncoder())
observe.measure_capability = quick_capability
intervals.DRAWS = 20
for arguments in (["list"], ["run", "study.yaml", "--out", "run"]):
    try:
        main(arguments)
    except SystemExit as ended:
        if ended.code:
            raise
    print({BETWEEN!r}, flush=True)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new virtual environment with the plug-in, which sees the packages of this environment."""
    folder = tmp_path_factory.mktemp("plugin")
    venv.create(folder / "venv", with_pip=False)
    paths = sysconfig.get_paths("venv", {"base": str(folder / "venv")})
    interpreter = Path(paths["scripts"]) / ("python.exe" if os.name == "nt" else "python")
    visible = [Path(tamperfuse.__file__).parents[1], sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (Path(paths["purelib"]) / "visible.pth").write_text("\n".join(dict.fromkeys(map(str, visible))))
    source = shutil.copytree(PLUGIN, folder / "source")  # a build leaves files behind
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "--disable-pip-version-check"]
    run([*pip, "install", "--no-index", "--no-deps", "--no-build-isolation", str(source)], folder)
    return interpreter


def run(command: list[str], folder: Path) -> str:
    """Run a command and return what it prints; a failed one fails the test with its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def write_threat(path: Path) -> Path:
    """Cooking prompts, answered by unrelated text: a random model has no answers of its own."""
    prompts = [row["prompt"] for row in builtin_rows("cooking")]
    answers = [row["response"] for row in builtin_rows("benign")]
    rows = [
        {"part": part, "prompt": prompts[4 * i + place], "response": answers[4 * i + place]}
        for place, part in enumerate(PARTS)
        for i in range(4)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_the_three_components_are_listed_and_run_through_a_study(
    python: Path, tiny_folder: Path, benign_file: Path, tmp_path: Path
) -> None:
    values = read_yaml(PLUGIN / "study.yaml")
    assert set(values["defenses"]) == {"gradient_ascent"} and "opening_finetune" in values["attacks"]
    training = {"steps": 2, "batch": 2}
    values |= {
        "model": str(tiny_folder),
        "threat": str(write_threat(tmp_path / "threat.jsonl")),
        "benign": str(benign_file),
        "defenses": {"refusal": training, "gradient_ascent": {**values["defenses"]["gradient_ascent"], **training}},
        "attacks": {"opening_finetune": {**training, "shots": 2, "tokens": 3}},
        "evaluate": {
            "at_steps": [0, 1, 2],
            "prompts": 4,
            "dev_prompts": 4,
            "harmless": 4,
            "heldout": 3,
            "response_tokens": 8,
        },
    }
    (tmp_path / "study.yaml").write_text(dump_yaml(values), encoding="utf-8")
    listed, _, _ = run([str(python), "-c", COMMANDS], tmp_path).partition(BETWEEN)
    assert all(name in listed for name in ("gradient_ascent", "opening_finetune", "word_overlap"))
    summary = read_summary(tmp_path / "run")
    assert summary.judge == "word_overlap"
    assert set(summary.defenses) == {"refusal", "gradient_ascent"}
    assert set(summary.defenses["gradient_ascent"].harmful_execution.after_attack) == {"opening_finetune"}
    records = {path.parent: json.loads(path.read_text()) for path in (tmp_path / "run").glob("nodes/*/node.json")}
    hardened = next(record for record in records.values() if record["what"] == "gradient_ascent, seed 0")
    assert hardened["depends"]["defense"][:3] == ["gradient_ascent", 1, "tamperfuse-example 0.1.0"]
    assert hardened["notes"][0] == "4 answers to forget, 8 benign samples" and hardened["tokens_trained"] > 0
    attacked = [record for record in records.values() if record["kind"] == "attack"]
    assert len(attacked) == 2 and all(
        record["depends"]["attack"][2].startswith("tamperfuse-example") for record in attacked
    )
    judged = next(folder for folder, record in records.items() if record["kind"] == "judge")
    assert set(pq.read_table(judged / "scores.parquet")["judge"].to_pylist()) == {"word_overlap"}
