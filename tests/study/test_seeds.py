"""One study file with several defenses, attacks and three seeds: what they share is planned and computed once."""

from collections import Counter
from pathlib import Path

import pytest

from tamperfuse.records.files import read_json
from tamperfuse.records.results import read_results
from tamperfuse.records.run import read_run
from tamperfuse.study.context import StudyContext
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.run import run_study
from tamperfuse.study.spec import Study, load_study

SHARED = ("answers before hardening", "defender answers", "self-made samples", "benign set", "calibration")
STUDY = """
model: {model}
threat: {threat}
seeds: [0, 1, 2]
defenses:
  refusal: {{steps: 1, batch: 2}}
  sdd: {{on: refusal, steps: 1, batch: 2}}
  sdd_reject: {{on: refusal, steps: 1, batch: 2}}
attacks:
  full: {{attack: harmful_finetune, shots: 2, steps: 1, batch: 2}}
  prune: {{}}
{more}
benign: {benign}
pairs: {{threshold: 0.99}}
judge: {{judge: builtin, tolerated: 0.5}}
evaluate: {{at_steps: [0, 1], prompts: 4, curve_prompts: 3, dev_prompts: 3, harmless: 4, response_tokens: 8, heldout: 3}}
"""
MORE = "  attention: {attack: harmful_finetune, method: attention, shots: 2, steps: 1, batch: 2}\n  prefill: {}"


@pytest.fixture
def path(study: Study, tmp_path: Path, benign_file: Path) -> Path:
    """The study file, with six combinations of a defense and an attack."""
    file = tmp_path / "study.yaml"
    text = STUDY.format(model=study.model, threat=study.threat, benign=benign_file, more="")
    file.write_text(text, encoding="utf-8")
    return file


def test_twelve_combinations_with_three_seeds_share_their_parents(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("  prune: {}\n", f"  prune: {{}}\n{MORE}\n"), encoding="utf-8")
    nodes = build_nodes(StudyContext.open(load_study(path), tmp_path / "run"))
    kinds = Counter(node.kind for node in nodes)
    assert {kind: kinds[kind] for kind in SHARED} == dict.fromkeys(SHARED, 1)
    assert kinds["measure"] == 1 + 3 * 3, "the model as shipped once, every defense with every seed"
    assert kinds["defense"] == 3 * 3 and kinds["attack"] == 12 * 3 and kinds["pairs"] == 3
    assert len({node.key for node in nodes}) == len(nodes)


def test_three_seeds_in_one_file_compute_every_node_once(path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = run_study(load_study(path), run)
    assert summary is not None and summary.seeds == [0, 1, 2]
    nodes = read_run(run).nodes
    assert not any(node.reused for node in nodes)
    kinds = Counter(read_json(file)["kind"] for file in run.glob("nodes/*/node.json"))
    assert {kind: kinds[kind] for kind in SHARED} == dict.fromkeys(SHARED, 1)
    assert kinds["attack"] == 6 * 3 and kinds["judge"] == 1 + 3 * 3 + 6 * 3
    assert kinds.total() == len({node.key for node in nodes}) == len(nodes)
    combinations = {(row["defense"], row["attack"], row["seed"]) for row in read_results(run) if row["attack"]}
    assert len(combinations) == 6 * 3
