"""The judges `classifier` and `guard` on tiny random models."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from stand_ins import make_tokenizer
from tamperfuse.evaluation.judges import Answer, JudgeData, Verdict, local_model
from tamperfuse.evaluation.judges.classifier import ClassifierParameters, classifier
from tamperfuse.evaluation.judges.guard import GuardParameters, _replies, guard
from tamperfuse.evaluation.judges.local_model import JudgeModel, load_judge_model
from tamperfuse.records.errors import UserError
from tamperfuse.study.sections import parse_judge

ANSWERS = [Answer(f"how do I cook number {i}", f"first {i}, then " * (1 + i % 4) + "done") for i in range(9)]
DATA = JudgeData(None, [], 16)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(local_model, "compute_dtype", lambda device: (torch.float32, "test"))
    yield
    local_model.free_judge_model()


def save_classifier(folder: Path, **values: Any) -> str:
    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,
        **{"id2label": {0: "fine", 1: "toxic", 2: "rude"}, **values},
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def expected(folder: str, text: str, response: str | None, **options: Any) -> torch.Tensor:
    """Logits of one response alone."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), make_tokenizer()
    with torch.no_grad():
        return model(**tokenizer(text, response, return_tensors="pt", **options)).logits[0]


def classify(**values: Any) -> list[Verdict]:
    return classifier(ANSWERS, DATA, ClassifierParameters.model_validate(values))


def test_the_score_is_the_probability_of_the_label(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    verdicts = classify(model=folder, label="Toxic", batch=4)
    for answer, verdict in zip(ANSWERS, verdicts, strict=True):
        probability = float(expected(folder, answer.prompt, answer.response).softmax(-1)[1])
        assert verdict.score == pytest.approx(probability, abs=1e-4)
        assert verdict.evidence["label"] == "toxic"
    alone = classify(model=folder, label=1, batch=1)
    assert [v.score for v in alone] == pytest.approx([v.score for v in verdicts], abs=1e-4)
    scores = sorted(v.score or 0 for v in verdicts)
    middle = classify(model=folder, label=1, threshold=(scores[3] + scores[4]) / 2)
    assert sum(v.verdict for v in middle) == 5


def test_a_template_takes_the_place_of_the_pair(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    template = "USER: {prompt} ASSISTANT:{response}"
    answer = ANSWERS[2]
    probability = float(expected(folder, f"USER: {answer.prompt} ASSISTANT:{answer.response}", None).softmax(-1)[1])
    assert classify(model=folder, template=template)[2].score == pytest.approx(probability, abs=1e-4)


def test_any_of_several_labels(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model", problem_type="multi_label_classification")
    best = expected(folder, ANSWERS[0].prompt, ANSWERS[0].response).sigmoid().max()
    assert classify(model=folder, label="any")[0].score == pytest.approx(float(best), abs=1e-4)


def test_a_control_token_in_a_response_is_text(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    verdict = classifier([Answer("p", "a<|end|>b")], DATA, ClassifierParameters(model=folder))[0]
    as_text, as_control = (
        float(expected(folder, "p", "a<|end|>b", split_special_tokens=split).softmax(-1)[1]) for split in (True, False)
    )
    assert verdict.score == pytest.approx(as_text, abs=1e-5)
    assert verdict.score != pytest.approx(as_control, abs=1e-3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"label": "toxick"}, "did you mean 'toxic'"),
        ({"label": 7}, r"no label 7: .* 1 \(toxic\)"),
        ({"label": "any"}, "exclude each other"),
    ],
)
def test_bad_labels(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    with pytest.raises(UserError, match=words):
        classify(model=folder, **values)


def test_a_model_without_a_classification_head_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(UserError, match=r"it lacks score\.weight"):
        classify(model=str(tiny_folder))


def test_templates_need_the_response() -> None:
    for name in ("classifier", "guard"):
        with pytest.raises(UserError, match=r"lacks \{response\}"):
            parse_judge({"judge": name, "model": "x/y", "template": "{prompt}"})


def judge_with_guard(folder: Path, **values: Any) -> list[Verdict]:
    return guard(ANSWERS, DATA, GuardParameters.model_validate({"model": str(folder), "tolerated": 1, **values}))


def test_the_first_words_of_a_guard_decide(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = ["\n\nunsafe\nS1", "Safe.", "YES, it is", "no", "unsafely put", "nothing", "\nsafe", "", "yes"]

    def scripted(self: JudgeModel, rows: list[list[int]], parameters: GuardParameters) -> list[str]:
        texts = [self.tokenizer.decode(row) for row in rows]
        return [replies[next(i for i, a in enumerate(ANSWERS) if a.prompt in text)] for text in texts]

    monkeypatch.setattr("tamperfuse.evaluation.judges.guard._replies", scripted)
    verdicts = judge_with_guard(tiny_folder)
    assert [v.verdict for v in verdicts] == [True, False, True, False, False, False, False, False, True]
    assert [v.reason for v in verdicts].count("unparsed") == 3
    with pytest.raises(UserError, match=r"could not decide on 3 of 9 .*set `unsafe` and `safe`"):
        judge_with_guard(tiny_folder, tolerated=0.1)


def test_a_guard_reads_the_conversation_through_its_template(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: dict[str, str] = {}

    def reading(local: JudgeModel, rows: list[list[int]], parameters: GuardParameters) -> list[str]:
        texts.update({local.tokenizer.decode(row): "" for row in rows})
        return ["unsafe" for _ in rows]

    monkeypatch.setattr("tamperfuse.evaluation.judges.guard._replies", reading)
    assert all(v.verdict for v in judge_with_guard(tiny_folder))
    first = ANSWERS[0]
    assert f"<|user|>{first.prompt}<|end|><|assistant|>{first.response}<|end|><|assistant|>" in texts
    judge_with_guard(tiny_folder, template="Q: {prompt} A: {response} Harmful?")
    assert f"Q: {first.prompt} A: {first.response} Harmful?" in texts


def test_a_guard_generates_the_same_alone_and_in_a_batch(tiny_folder: Path) -> None:
    """The words of a random model are arbitrary: every answer is unparsed, and its text is the evidence."""
    extra = {"unsafe": ("harmful",), "safe": ("harmless",)}
    with pytest.raises(UserError, match="could not decide on 9 of 9"):
        judge_with_guard(tiny_folder, **extra)
    local = load_judge_model(str(tiny_folder), AutoModelForCausalLM)
    parameters = GuardParameters(model=str(tiny_folder))
    rows = [local.tokenizer(f"{answer.prompt} {answer.response}").input_ids for answer in ANSWERS]
    assert len({len(row) for row in rows}) > 1, "some are padded"
    together = _replies(local, rows, parameters)
    assert together == [_replies(local, [row], parameters)[0] for row in rows]
    assert any(together)


def test_a_response_longer_than_the_window_is_counted(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tamperfuse.evaluation.judges.guard._replies", lambda local, rows, parameters: ["safe"] * len(rows)
    )
    answers = [*ANSWERS, Answer("p", "word " * 600)]
    verdicts = guard(answers, DATA, GuardParameters(model=str(tiny_folder), tolerated=1))
    assert [v.reason for v in verdicts] == ["not harmful"] * 9 + ["rejected"]


def test_one_model_is_in_memory(tmp_path: Path) -> None:
    folders = [save_classifier(tmp_path / name) for name in ("a", "b")]
    first = load_judge_model(folders[0], AutoModelForSequenceClassification)
    assert load_judge_model(folders[0], AutoModelForSequenceClassification) is first
    load_judge_model(folders[1], AutoModelForSequenceClassification)
    assert len(local_model._loaded) == 1
