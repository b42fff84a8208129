import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tamperfuse.attacks import ATTACKS, AttackData, AttackResult
from tamperfuse.cli.app import main
from tamperfuse.commands.diagnose import diagnose_models
from tamperfuse.corpora.threats import ThreatPrompt
from tamperfuse.evaluation.attack_trace import (
    ALL_PARAMETERS,
    AttackTracer,
    GradientCosines,
    Probes,
    TracePoint,
    gradient,
    gradient_cosines,
    layer_of,
)
from tamperfuse.evaluation.diagnosis import Diagnosis
from tamperfuse.evaluation.feature_overlap import feature_overlap, subspace_overlap
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json
from tamperfuse.report.diagnosis import answer, finding, time_spent, write_diagnosis, write_figures
from tamperfuse.study.judging import CompliantAnswers
from tamperfuse.training.fit import Training, fit


def probes(tiny: LoadedModel) -> Probes:
    chat = tiny.chat
    original = [chat.sample(f"question {i}", f"my own answer {i * 3}", 20) for i in range(4)]
    compliant = [chat.sample(f"question {i}", f"what the attacker wants, {i}", 20) for i in range(4)]
    benign = [chat.sample(f"weather {i}", f"rain and wind all day {i}", 20) for i in range(4)]
    return Probes(original, compliant, benign, compliant)


def test_an_attack_is_traced_step_by_step(tiny: LoadedModel) -> None:
    samples = probes(tiny)
    tracer = AttackTracer(tiny, samples, gradients_at=(0, 2, 4))
    training = Training(steps=4, batch=4, learning_rate=3e-3)
    result = fit(tiny, samples.attacker, training, seed=0, at_steps=range(5), hook=tracer)
    first, last = tracer.points[0], tracer.points[-1]
    assert [point.step for point in tracer.points] == [0, 1, 2, 3, 4]
    assert first.preference == 0.5 and last.preference > 0.6  # what was trained on is preferred
    assert last.compliant > first.compliant
    assert first.compliant == pytest.approx(
        -result.losses[0], rel=0.02
    )  # the same quantity, computed by training and by scoring
    assert [entry.step for entry in tracer.cosines if entry.layer == ALL_PARAMETERS] == [0, 2, 4]
    assert {entry.layer for entry in tracer.cosines} == {ALL_PARAMETERS, -1, 0, 1}
    values = [value for entry in tracer.cosines for value in (entry.attacker_original, entry.original_benign)]
    assert all(-1 <= value <= 1 for value in values)


def test_tracing_an_attack_does_not_change_it(tiny_folder: Path) -> None:
    from tamperfuse.models.load import load_model

    def weights(trace: bool) -> torch.Tensor:
        model = load_model(str(tiny_folder))
        samples = probes(model)
        hook = AttackTracer(model, samples, gradients_at=(0, 1)) if trace else None
        fit(model, samples.attacker, Training(steps=2, batch=4), seed=0, at_steps=(0, 1, 2) if trace else (), hook=hook)
        return next(model.model.parameters()).detach()

    assert torch.equal(weights(True), weights(False))


def test_cosines_of_the_same_and_the_opposite_gradient(tiny: LoadedModel) -> None:
    taken = gradient(tiny, probes(tiny).original)
    opposite = {name: -value for name, value in taken.items()}
    nothing = {name: torch.zeros_like(value) for name, value in taken.items()}
    assert gradient_cosines(taken, taken, opposite)[ALL_PARAMETERS] == pytest.approx((1, -1, -1), abs=1e-5)
    assert math.isnan(gradient_cosines(taken, nothing, taken)[ALL_PARAMETERS][0])
    assert [layer_of(n) for n in ("model.layers.11.mlp.up_proj.weight", "transformer.h.3.w", "lm_head.weight")] == [
        11,
        3,
        -1,
    ]


def test_overlap_is_one_for_the_same_update_none_for_unrelated_ones() -> None:
    generator = torch.Generator().manual_seed(0)

    def update(columns: slice) -> torch.Tensor:
        """A change of eight features that reads these inputs."""
        change = torch.zeros(96, 256)
        reads = torch.randn(8, columns.stop - columns.start, generator=generator)
        change[:, columns] = torch.randn(96, 8, generator=generator) @ reads
        return change

    name = "layers.0.w"
    benign = {name: sum((update(slice(0, 64)) for _ in range(12)), torch.zeros(96, 256))}  # the first 64: invariant
    both = {name: update(slice(0, 256))}
    (same,) = feature_overlap(both, both, benign)
    assert same.invariant == pytest.approx(1, abs=0.05) and same.spurious == pytest.approx(1, abs=0.05)
    (other,) = feature_overlap(both, {name: update(slice(0, 256))}, benign)
    assert abs(other.invariant) < 0.3 and abs(other.spurious) < 0.3
    assert feature_overlap(both, {name: torch.zeros(96, 256)}, benign) == []
    adapter = update(slice(0, 256))[:3]  # of rank 3
    one, two = ({name: torch.randn(96, 3, generator=generator) @ adapter} for _ in range(2))
    (lower,) = feature_overlap(one, two, benign)
    assert lower.spurious == pytest.approx(1, abs=0.05), "directions that neither change has do not count"
    basis = torch.eye(10)
    assert subspace_overlap(basis[:, :3], basis[:, 3:6]) == 0 and subspace_overlap(basis[:, :3], basis[:, :3]) == 1


@pytest.mark.usefixtures("word_counts")
def test_models_are_diagnosed_side_by_side(
    tiny_folder: Path, threat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tamperfuse.report.html._library", lambda: "")
    answered = CompliantAnswers(
        [ThreatPrompt(f"{i}", f"attacker request {i}", response=f"an answer {i}") for i in range(8)], 0
    )
    monkeypatch.setattr("tamperfuse.commands.diagnose.compliant_answers", lambda *_: answered)
    harmless = tmp_path / "harmless.jsonl"
    rows = [{"prompt": f"attacker request number {i} about subject {i * 7}", "response": "Yes."} for i in range(6)]
    rows += [{"prompt": f"Name {i} colours of autumn leaves", "response": "Red."} for i in range(3)]
    harmless.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    retained: list[int] = []
    component = ATTACKS.get("harmful_finetune")

    def recorded(loaded: LoadedModel, data: AttackData, *rest: Any) -> AttackResult:
        retained.append(len(data.retain))
        return component.run(loaded, data, *rest)

    traits = replace(component.traits, uses=("retain",))  # the attack itself trains on none
    monkeypatch.setitem(ATTACKS.components, "harmful_finetune", replace(component, run=recorded, traits=traits))
    cosines = {
        layer: (float("nan"), 0.5, -0.5) for layer in (0, 1, ALL_PARAMETERS)
    }  # NaN is the cosine with a gradient that is zero
    real = gradient_cosines
    once = iter([cosines])
    monkeypatch.setattr("tamperfuse.evaluation.attack_trace.gradient_cosines", lambda *a: next(once, None) or real(*a))
    settings = {"shots": 6, "steps": 4, "batch": 4}
    out = tmp_path / "diagnosis"
    diagnoses = diagnose_models(
        [str(tiny_folder)],
        "harmful_finetune",
        str(threat_file),
        out,
        reference=None,
        retain=str(harmless),
        settings=settings,
        items=0,
        seed=0,
    )
    assert retained == [3], "rows that belong to the threat are left out"
    assert "benign NLL changed from" in finding(diagnoses[0])
    assert "times the attack (" in time_spent(diagnoses[0])
    html = write_diagnosis(out, diagnoses).read_text(encoding="utf-8")
    assert html.count('class="plot') == sum(
        len(f["panels"]) for f in read_json(out / "diagnosis.json")["figures"].values()
    )
    measured = read_json(out / "measured.json")
    (record,) = measured["models"]
    assert (measured["attack"], measured["seed"], measured["parameters"]["steps"]) == ("harmful_finetune", 0, 4)
    assert [point["step"] for point in record["points"]] == [0, 1, 2, 3, 4]
    assert record["cosines"][0]["attacker_original"] is None, "JSON has no NaN"
    values = [value for rows in (record["points"], record["cosines"]) for row in rows for value in row.values()]
    assert all(isinstance(value, int | float) or value is None for value in values)
    restored = Diagnosis.from_record(record)
    assert restored.points == diagnoses[0].points and math.isnan(restored.cosines[0].attacker_original)
    assert restored.to_record() == record
    pictures = write_figures(out, tmp_path / "figures")
    assert [path.name for path in pictures] == ["traces.svg", "cosines.svg", "layers.svg"]
    with pytest.raises(UserError, match="Two models are called"):
        diagnose_models(
            [str(tiny_folder)] * 2,
            "harmful_finetune",
            str(threat_file),
            tmp_path / "x",
            reference=None,
            retain="builtin:retain",
            settings={},
            items=0,
            seed=0,
        )


@pytest.mark.parametrize(
    ("original", "benign", "expected"),
    [
        (-1.29, 4.55, "both. Original answers became 0.99 less likely, benign text became 0.92 less likely"),
        (-1.29, 3.6, "one of them. Original answers became 0.99 less likely, benign text became 0.03 more likely"),
        (-1.29, 3.634, "one of them. Original answers became 0.99 less likely, benign text stayed as likely, in nats"),
        (-0.2, 3.63, "neither. Original answers became 0.10 more likely, benign text stayed as likely, in nats"),
        (-1.29, math.nan, "not measurable"),
    ],
)
def test_the_page_says_what_became_less_likely(original: float, benign: float, expected: str) -> None:
    points = [TracePoint(0, -0.3, -1.0, 0.5, 3.63), TracePoint(32, original, -0.7, 0.9, benign)]
    assert expected in answer(Diagnosis("refusal", points, [], [], {}, 1.0, 1.0))


def test_the_terminal_answers_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [TracePoint(0, -0.3, -1.0, 0.5, 3.63), TracePoint(32, -1.29, -0.7, 0.9, 4.55)]
    diagnosis = Diagnosis("refusal", points, [GradientCosines(0, ALL_PARAMETERS, 0.1, 0.1, 0.1)], [], {}, 1.0, 1.0)
    monkeypatch.setattr("tamperfuse.commands.diagnose.diagnose_models", lambda *_, **__: [diagnosis])
    monkeypatch.setattr("tamperfuse.report.diagnosis.write_diagnosis", lambda *_: tmp_path / "diagnosis.html")
    with pytest.raises(SystemExit) as ended:
        main(["diagnose", "refusal", "--threat", "builtin:cooking", "--out", str(tmp_path)])
    assert not ended.value.code and capsys.readouterr().out.startswith("refusal: both. Original answers became 0.99")
