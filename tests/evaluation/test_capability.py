"""Capability tasks of lm-eval: groups are pooled, few-shot examples, limits, and errors for tasks that are not available."""

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.evaluation import capability, capability_tasks
from tamperfuse.evaluation.capability import Documents, _items, measure_capability
from tamperfuse.evaluation.capability_tasks import CapabilityTask
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.records.errors import UserError
from tamperfuse.study.sections import Evaluate

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def stub(folder: Path, name: str, count: int) -> Path:
    data = folder / f"{name}.json"
    rows = [{"question": f"{name} question {i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(count)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data))
    return folder / f"{name}.yaml"


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A group of two tasks with 6 and 10 questions, registered in lm-eval."""
    for name, count in (("one", 6), ("two", 10)):
        stub(tmp_path, name, count)
    (tmp_path / "both.yaml").write_text("group: both\ntask: [one, two]\n")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(capability_tasks, "_manager", lambda defaults: manager)
    return "both"


def test_a_group_is_its_subtasks_pooled(tiny: LoadedModel, group: str) -> None:
    items, tokens = measure_capability(tiny, [group], None)
    assert {item.task for item in items} == {group} and tokens > 0
    assert [item.item for item in items] == list(range(16))
    assert {item.chance for item in items} == {0.5}
    fewer, _ = measure_capability(tiny, [group], 7)
    assert len(fewer) == 7 and set(fewer) < set(items), "a limit picks among all, and the same answers come"


def test_examples_are_shown_before_each_question(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capability_tasks, "_manager", lambda defaults: TaskManager(include_defaults=False))
    task, contexts = str(stub(tmp_path, "three", 5)), []
    plain = capability._sample
    monkeypatch.setattr(capability, "_sample", lambda *rest: contexts.append(rest[1]) or plain(*rest))
    measure_capability(tiny, [task], 2)
    measure_capability(tiny, [CapabilityTask(task=task, fewshot=2)], 2)
    assert [text.count("question") for text in contexts] == [1] * 4 + [3] * 4
    before = list(contexts)
    measure_capability(tiny, [CapabilityTask(task=task, fewshot=2)], 2)
    assert contexts[len(before) :] == before[4:], "the same examples every time"


def test_a_study_names_examples() -> None:
    named = Evaluate.model_validate({"capability": ["builtin", {"task": "mmlu", "fewshot": 5}]})
    assert named.capability == ("builtin", CapabilityTask(task="mmlu", fewshot=5))
    assert Evaluate.model_validate(named.model_dump(mode="json")) == named


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("openbookqa", "'openbookqa' cannot be loaded .*: use `builtin`, or a machine that has access to the Hub"),
        ("openbokqa", "no capability task named 'openbokqa': did you mean 'openbookqa'"),
    ],
)
def test_a_task_that_is_not_available_is_an_error(task: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        capability_tasks.load_tasks([task])


def test_a_task_named_twice_is_an_error(tmp_path: Path) -> None:
    task = str(stub(tmp_path, "four", 2))
    with pytest.raises(UserError, match="'four' is named twice"):
        capability_tasks.load_tasks([task, CapabilityTask(task=task, fewshot=1)])


@pytest.mark.parametrize("bos", [False, True])
def test_log_likelihoods_are_those_of_lm_evals_own_model(
    bos: bool, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    if bos:  # as the tokenizers of Llama and Gemma
        tokenizer.add_special_tokens({"bos_token": "<|system|>"})
        start = [("<|system|>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|system|> $A", pair="<|system|> $A $B", special_tokens=start
        )
        tokenizer.save_pretrained(tmp_path / "model")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    texts = [
        ("Question: What melts ice?\nAnswer:", " warm water"),
        ("The cat sat on the ", "mat"),
        ("", "The cat sat."),
        ("<|system|>The cat", " sat"),
        ("word " * 600, "mat"),  # longer than the context window
    ]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(texts)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    expected = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).loglikelihood(requests, disable_tqdm=True)
    monkeypatch.setattr("tamperfuse.evaluation.score.inference", lambda loaded: nullcontext())
    measured = capability.lm_eval_model(load_model(str(tmp_path / "model"))).loglikelihood(requests)
    for (value, greedy), (measured_value, own_greedy) in zip(expected, measured, strict=True):
        assert measured_value == pytest.approx(value, abs=1e-3) and own_greedy == greedy


@pytest.mark.parametrize("place", ["task", "data"])
def test_pipes_in_place_of_a_task_or_its_data_are_refused(place: str, tmp_path: Path) -> None:
    task, data = tmp_path / "four.yaml", tmp_path / "four.jsonl"
    os.mkfifo(task if place == "task" else data)
    if place == "data":
        task.write_text(f"task: four\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: '{data}'\n")
    with pytest.raises(UserError, match=r"four\.\w+ is not a file to read \(it is a pipe\)"):
        capability_tasks.load_tasks([str(task)])


@pytest.mark.parametrize("value", [0.3, float("nan")])
def test_a_task_that_scores_fractions_is_refused(value: float) -> None:
    docs = Documents("mc2", None, [0], 0)
    with pytest.raises(UserError, match=r"'mc2' scores fractions \(.* of one item\).*right or wrong"):
        _items(docs, [{"doc_id": 0, "acc": value, "arguments": [1, 2]}])
    assert [item.correct for item in _items(docs, [{"doc_id": 0, "acc": 1.0, "arguments": [1, 2]}])] == [True]


def test_mutual_information_does_not_change_what_guessing_gives() -> None:
    """With this metric lm-eval scores each choice twice."""
    sample = {"doc_id": 0, "acc": 1.0, "arguments": [1, 2, 3, 4]}
    [four] = _items(Documents("four", None, [0], 0), [sample])
    [two] = _items(Documents("two", None, [0], 0), [{**sample, "acc_mutual_info": 1.0}])
    assert (four.chance, two.chance) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("kind", "words"), [("generate_until", "generates text"), ("loglikelihood_rolling", "scores whole texts")]
)
def test_a_task_that_cannot_be_scored_is_refused_when_it_is_loaded(
    kind: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capability_tasks, "_manager", lambda defaults: TaskManager(include_defaults=False))
    data, task = tmp_path / "texts.jsonl", tmp_path / "texts.yaml"
    data.write_text('{"text": "a b c"}\n')
    task.write_text(
        f"task: texts\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: '{data}'}}}}\ntest_split: test\n"
        f"output_type: {kind}\ndoc_to_text: ''\ndoc_to_target: '{{{{text}}}}'\n"
    )
    with pytest.raises(UserError, match=f"'texts' {words}"):
        capability_tasks.load_tasks([str(task)])


def test_built_in_items_have_the_chance_of_their_choices_and_grammar_its_templates() -> None:
    """Intervals of the grammar items are clustered by template."""
    rows = builtin_rows("grammar")
    pair = {"acc": 1.0, "arguments": [1, 2]}
    items = _items(Documents("grammar", None, [0, 1], 0), [{**pair, "doc_id": 1}, {**pair, "doc_id": 0}])
    assert [(item.item, item.group, item.chance) for item in items] == [(i, rows[i]["template"], 0.5) for i in (0, 1)]
    [item] = _items(Documents("everyday", None, [3], 5), [{"doc_id": 3, "acc_norm": 0.0, "arguments": [1, 2, 3, 4]}])
    assert (item.item, item.group, item.correct, item.chance) == (8, "", False, 0.25)


def test_a_task_without_an_accuracy_is_refused() -> None:
    with pytest.raises(UserError, match="'f1' has no accuracy metric"):
        _items(Documents("f1", None, [0], 0), [{"doc_id": 0, "f1": 1.0, "arguments": [1, 2]}])
