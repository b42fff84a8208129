"""Attacks in a study and from the command line: what they receive, what their keys depend on, what is written."""

import json
from pathlib import Path
from typing import Any

import pytest

from tamperfuse.commands.attack import attack_model
from tamperfuse.records.errors import UserError
from tamperfuse.records.results import read_results
from tamperfuse.records.summary import read_summary
from tamperfuse.study.context import StudyContext
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.run import run_study
from tamperfuse.study.spec import Study, parse_study
from tamperfuse.study.tables import Response, read_rows

FAST = {"steps": 2, "batch": 2}
ATTACKS: dict[str, dict[str, Any]] = {
    "prefill": {},
    "merge": {"weight": 0.5},
    "quantize": {"format": "int4"},
    "mixed": {"attack": "mixed_finetune", "samples": 3, "share": 0.4, **FAST},
    "preference": {"attack": "preference_finetune", "shots": 2, **FAST},
    "repair": {"attack": "repair_finetune", "shots": 2, "samples": 2, **FAST},
    "routing": {"attack": "benign_finetune", **FAST},
    "dates": {"attack": "benign_finetune", "task": "dates", **FAST},
}


@pytest.fixture
def attack_study(study: Study) -> Study:
    """A study of one defense under many attacks."""
    values = {**study.model_dump(mode="json"), "attacks": ATTACKS}
    values["defenses"] = {"refusal": values["defenses"]["refusal"]}
    return parse_study(values, "test")


def attack_keys(study: Study, folder: Path) -> dict[str, str]:
    """The keys of the attack nodes, by attack."""
    keys = {node.label: node.key for node in build_nodes(StudyContext.open(study, folder))}
    return {name: keys[f"refusal under {name}, seed 0"] for name in ATTACKS}


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ({"attack": "mixed_finetune", "samples": 7, "share": 0.2}, "greedy needs 6 harmless samples; .* has 5: lower"),
        ({"attack": "retain_finetune", "shots": 2, "retained": 6}, "greedy needs 6 harmless samples"),
        ({"attack": "repair_finetune", "shots": 2, "samples": 6}, "greedy needs 6 harmless samples"),
        ({"attack": "refusal_ablation", "prompts": 6}, "greedy needs 6 harmless samples"),
        (
            {
                "attack": "repair_finetune",
                "shots": 2,
                "steps": 2,
                "search": {"trials": 1, "over": {"samples": [2, 6]}},
            },
            "greedy needs 6 harmless samples",
        ),
        ({"attack": "harmful_finetune", "shots": 7}, "greedy needs 7 shots"),
    ],
)
def test_an_attack_that_draws_more_than_there_is_is_refused_before_anything_runs(
    study: Study, tmp_path: Path, attack: dict[str, Any], words: str
) -> None:
    rows = [{"prompt": f"harmless question {i} of day {i * 3}", "response": f"answer {i}"} for i in range(5)]
    (tmp_path / "retain.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    values = study.model_dump(mode="json") | {"retain": str(tmp_path / "retain.jsonl"), "attacks": {"greedy": attack}}
    with pytest.raises(UserError, match=words):
        run_study(parse_study(values, "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_every_kind_of_attack_runs_in_a_study(attack_study: Study, tmp_path: Path) -> None:
    run_study(attack_study, tmp_path / "run")
    rows = read_results(tmp_path / "run")
    assert {row["attack"] for row in rows} == {"", *ATTACKS}
    assert {row["step"] for row in rows if row["attack"] == "prefill"} >= {1}
    assert {row["task"] for row in rows if row["metric"] == "task_score"} == {"routing", "dates"}
    assert {row["attack"] for row in rows if row["malicious"]} == {"prefill", "merge", "mixed", "preference", "repair"}
    refusal = read_summary(tmp_path / "run").defenses["refusal"]
    assert {name for name, cost in refusal.attack_cost.items() if cost is None} == {"prefill", "merge"}
    assert set(refusal.harmful_execution.after_control) == {"quantize", "routing", "dates"}
    folders = (tmp_path / "run" / "nodes").iterdir()
    records = [json.loads((folder / "node.json").read_text()) for folder in folders]
    untrained = [r["what"] for r in records if r["kind"] == "attack" and r["tokens_trained"] == 0]
    assert sorted(what.split()[2] for what in untrained) == ["merge,", "prefill,", "quantize,"]


def test_a_response_is_written_without_its_prefill(attack_study: Study, tmp_path: Path) -> None:
    only = attack_study.model_copy(update={"attacks": {"prefill": attack_study.attacks["prefill"]}})
    run_study(only, tmp_path / "run")
    (folder,) = (
        folder
        for folder in (tmp_path / "run" / "nodes").iterdir()
        if json.loads((folder / "node.json").read_text())["kind"] == "attack"
    )
    responses = read_rows(folder / "responses.parquet", Response)
    assert responses and {row.step for row in responses} == {1}
    assert not any("Certainly!" in row.response for row in responses)


def test_keys_depend_on_what_an_attack_uses(attack_study: Study, tmp_path: Path) -> None:
    retain = tmp_path / "retain.jsonl"
    retain.write_text("\n".join(json.dumps({"prompt": f"q{i}", "response": f"a{i}"}) for i in range(4)))
    before = attack_keys(attack_study, tmp_path)
    after = attack_keys(attack_study.model_copy(update={"retain": str(retain)}), tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"mixed", "repair"}
    assert before["routing"] != before["dates"]


def test_a_source_to_retain_needs_responses(attack_study: Study, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="cannot be used for `retain`, because it has no row with a prompt and a response"
    ):
        StudyContext.open(attack_study.model_copy(update={"retain": "builtin:instructions"}), tmp_path)


@pytest.mark.usefixtures("quick_judging")
@pytest.mark.parametrize("attack", ["system_prompt", "preference_finetune"])
def test_an_attack_from_the_command_line_measures_before_and_after(
    attack: str, tiny_folder: Path, threat_file: Path, tmp_path: Path
) -> None:
    lines = attack_model(
        str(tiny_folder),
        attack,
        str(threat_file),
        tmp_path / "out",
        reference=None,
        retain="builtin:retain",
        keep=True,
        settings={"shots": 2, **FAST} if attack == "preference_finetune" else {},
        seed=0,
    )
    assert any(line.startswith("before: harmful execution") for line in lines)
    last = 2 if attack == "preference_finetune" else 1
    end = f"step {last}" if attack == "preference_finetune" else "after"
    assert any(line.startswith(f"{end}: harmful execution") for line in lines)
    record = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert (record["attack"], record["seed"], record["judge"]["judge"]) == (attack, 0, "builtin")
    measures = record["measures"]
    assert measures["harmful_execution"].keys() == {"0", str(last)} == measures["benign_answer_rate"].keys()
    assert measures["harmful_execution"]["0"].keys() == {"value", "low", "high", "n"}
    assert (measures["harmful_execution"]["0"]["n"], measures["benign_answer_rate"]["0"]["n"]) == (6, 128)
    assert (tmp_path / "out" / "attacked" / "tamperfuse.json").exists()
