"""Options reach the functions that they belong to, and attacked weights are deleted unless a user keeps them."""

from pathlib import Path
from typing import Any

import pytest

from tamperfuse.cli.app import main
from tamperfuse.records.errors import UserError

ATTACK = ["attack", "model", "--attack", "prune", "--threat", "threat", "--out", "out"]
HARDEN = ["harden", "model", "--defense", "sdd", "--threat", "threat", "--out", "out"]
RUN = ["run", "studies/demo.yaml", "--out", "out"]
PUBLISH = ["publish", "run", "--defense", "sdd", "--out", "out"]


@pytest.mark.parametrize(
    ("function", "command", "options", "received"),
    [
        ("commands.attack.attack_model", ATTACK, [], {"keep": False, "retain": "builtin:retain", "reference": None}),
        ("commands.attack.attack_model", ATTACK, ["--keep-attacked"], {"keep": True}),
        ("commands.attack.attack_model", ATTACK, ["--retain", "mine.jsonl"], {"retain": "mine.jsonl"}),
        ("commands.harden.harden_model", HARDEN, [], {"pairs": None, "benign": ["self"], "push_to_hub": None}),
        ("commands.harden.harden_model", HARDEN, ["--pairs", "pairs"], {"pairs": Path("pairs")}),
        ("study.run.run_study", RUN, [], {"only": [], "disk": None, "confirmed": False, "executor": "local"}),
        ("study.run.run_study", RUN, ["--disk", "5", "--yes"], {"disk": 5.0, "confirmed": True}),
        ("study.run.run_study", RUN, ["--only", "a*", "--only", "b"], {"only": ["a*", "b"]}),
        (
            "study.run.run_study",
            RUN,
            ["--executor", "ray", "--address", "auto"],
            {"executor": "ray", "address": "auto"},
        ),
        ("commands.publish.publish_model", PUBLISH, ["--seed", "2"], {"seed": 2, "policy": None}),
    ],
)
def test_options_reach_their_function(
    function: str, command: list[str], options: list[str], received: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {}

    def record(*arguments: Any, **named: Any) -> None:
        values.update(named)
        raise UserError("recorded")

    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(f"tamperfuse.{function}", record)
    with pytest.raises(SystemExit):
        main([*command, *options])
    assert {name: values[name] for name in received} == received


@pytest.mark.usefixtures("quick_judging")
@pytest.mark.parametrize("keep", [False, True])
def test_attacked_weights_are_kept_on_request_only(
    keep: bool, tiny_folder: Path, threat_file: Path, tmp_path: Path
) -> None:
    command = ["attack", str(tiny_folder), "--attack", "prune", "--threat", str(threat_file)]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(tmp_path / "out"), *(["--keep-attacked"] if keep else [])])
    assert not ended.value.code
    weights = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors")}
    assert weights == ({"out/attacked/model.safetensors"} if keep else set())
    assert (tmp_path / "out" / "attack.json").is_file()
