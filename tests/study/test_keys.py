"""A node's key changes with everything that its result depends on, and with nothing else."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.tasks import TaskManager

import tamperfuse
from tamperfuse.defenses import sdd
from tamperfuse.evaluation import capability
from tamperfuse.records.yaml import read_yaml
from tamperfuse.study import keys
from tamperfuse.study.context import StudyContext
from tamperfuse.study.keys import MODULES, module_constants
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.spec import Study, parse_study

SEARCH = {
    "attack": "harmful_finetune",
    "steps": 2,
    "shots": 2,
    "search": {"trials": 1, "over": {"learning_rate": [1e-5, 1e-3]}},
}


def node_keys(study: Study, run: Path) -> dict[str, str]:
    """Every node's key, by label."""
    return {node.label: node.key for node in build_nodes(StudyContext.open(study, run))}


def other(value: Any) -> Any:
    """A constant that differs from another one."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "!"
        case re.Pattern():
            return re.compile(value.pattern + "|never", value.flags)
        case dict():
            first = next(iter(value))
            return {**value, first: other(value[first])}
        case range():
            return range(value.start, value.stop + 1)
        case frozenset() | set():
            return value | {"another"}
        case tuple() | list():
            return type(value)([*value[:-1], other(value[-1])])
    raise AssertionError(f"no other value for {value!r}")


def constants() -> Iterator[tuple[str, str]]:
    for name in (*MODULES, "defenses.sdd", "attacks.identity_shift", "attacks.quantize"):
        module = import_module(f"tamperfuse.{name}")
        # The names of a threat's parts cannot change alone: its prompts are stored under them.
        yield from ((module.__name__, constant) for constant in module_constants(module) if constant != "PARTS")


@pytest.fixture(scope="module")
def all_kinds(tiny_folder: Path, threat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyContext:
    """A study with every kind of node."""
    study = {
        "model": str(tiny_folder),
        "threat": str(threat_file),
        "defenses": {"sdd": {"on": "refusal"}},
        "attacks": {"aye": {"attack": "identity_shift"}, "int8": {"attack": "quantize"}, "search": SEARCH},
        "evaluate": {"prompts": 4, "dev_prompts": 3, "harmless": 4, "heldout": 3},
    }
    return StudyContext.open(parse_study(study, "test"), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def keys_of_all_kinds(all_kinds: StudyContext) -> dict[str, str]:
    return {node.label: node.key for node in build_nodes(all_kinds)}


@pytest.mark.parametrize(("module", "constant"), list(constants()))
def test_every_constant_of_the_numerics_is_in_the_keys(
    module: str,
    constant: str,
    all_kinds: StudyContext,
    keys_of_all_kinds: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = keys_of_all_kinds
    target = import_module(module)
    monkeypatch.setattr(target, constant, other(getattr(target, constant)))
    after = {node.label: node.key for node in build_nodes(all_kinds)}
    assert before.keys() == after.keys()
    assert before != after


@pytest.mark.parametrize("preset", ["PAPER", "SMALL"])
@pytest.mark.parametrize("name", list(sdd.SMALL))
def test_a_changed_preset_value_changes_the_key(
    preset: str, name: str, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"on": "refusal", "defense": "sdd", "preset": preset.casefold()}
    values = study.model_dump(mode="json") | {"defenses": {"refusal": {"steps": 2}, "sdd": spec}}
    label = "sdd, seed 0"
    context = StudyContext.open(parse_study(values, "test"), tmp_path)
    before = next(node for node in build_nodes(context) if node.label == label)
    changed = {
        **getattr(sdd, preset),
        name: getattr(sdd, preset)[name] + (0.25 if name in ("learning_rate", "kl_weight") else 1),
    }
    monkeypatch.setattr(sdd, preset, changed)
    context = StudyContext.open(parse_study(values, "test"), tmp_path)
    after = next(node for node in build_nodes(context) if node.label == label)
    assert before.depends["defense"][-1][name] != after.depends["defense"][-1][name], "the resolved value is in the key"
    assert before.key != after.key


def test_the_size_from_which_the_paper_preset_is_used_changes_the_key(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = study.model_dump(mode="json") | {"defenses": {"sdd": {"on": "refusal"}}}
    before = node_keys(parse_study(values, "test"), tmp_path)
    monkeypatch.setattr(sdd, "PAPER_SIZE", 10)
    after = node_keys(parse_study(values, "test"), tmp_path)
    assert before["sdd, seed 0"] != after["sdd, seed 0"]
    assert StudyContext.open(parse_study(values, "test"), tmp_path).study.defenses["sdd"].parameters["steps"] == 500


def test_the_version_of_the_numerics_changes_every_key(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = node_keys(study, tmp_path)
    monkeypatch.setattr(keys, "NUMERICS", keys.NUMERICS + 1)
    after = node_keys(study, tmp_path)
    assert all(before[label] != after[label] for label in before)


def test_the_study_that_a_run_leaves_is_resolved_and_gives_the_same_keys_in_another_folder(
    finished_run: Path, tmp_path: Path
) -> None:
    values = read_yaml(finished_run / "study.yaml")
    assert None not in list(leaves(values)), "every default is spelled out"
    assert values["defenses"]["sdd"]["preset"] == "small"
    again = node_keys(parse_study(values, "study.yaml"), tmp_path / "elsewhere")
    assert set(again.values()) == {folder.name for folder in (finished_run / "nodes").iterdir()}


def leaves(value: Any) -> Iterator[Any]:
    """Every scalar of nested mappings and lists."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    else:
        yield value


def test_every_default_of_the_demo_survives_a_round_trip(tmp_path: Path) -> None:
    values = {
        "model": "smollm2-135m",
        "threat": "builtin:cooking",
        "attacks": {"search": SEARCH, "aye": {"attack": "identity_shift"}},
    }
    study = parse_study(values, "test")
    assert parse_study(yaml.safe_load(study.to_yaml()), "again") == study


def test_no_module_with_numbers_is_left_out_of_the_keys() -> None:
    """Constants of numeric packages are in the keys, or listed here because no result depends on them."""
    irrelevant = {
        "evaluation.attack_trace": "a traced attack is not a node of a study",
        "evaluation.feature_overlap": "likewise",
        "evaluation.judges.classifier": "a judge's own key has the constants of its module",
        "evaluation.judges.endpoint": "the name of an environment variable",
        "evaluation.judges.failures": "reasons by name",
        "evaluation.judges.guard": "as for the classifier",
        "evaluation.judges.llm": "likewise",
        "evaluation.judges.replies": "the name of a file",
        "evaluation.judges.rubrics": "the judge llm has its texts among its own constants",
        "evaluation.vllm_engine": "decides which engine generates; outputs are compared in its tests",
        "models.bundled": "names and addresses of packages",
        "models.conversion": "names of files",
        "models.chat_template": "limits beyond which a template is refused",
        "models.checks": "names of files and fields",
        "models.finite": "what is refused",
        "models.gguf_file": "a file format",
        "models.hub_ids": "which names are refused",
        "models.packed_check": "which models are refused",
        "models.quantized": "names of packages",
        "models.load": "file names",
        "training.accelerations": "memory alone",
        "training.checkpoints": "how often a state is saved",
        "training.telemetry": "what is reported",
        "training.fit": "functions by name",
    }
    root = Path(tamperfuse.__file__).parent
    for package in ("models", "training", "evaluation"):
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            if path.name == "__init__.py" or name in irrelevant or name in MODULES:
                continue
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
            constants = module_constants(import_module(f"tamperfuse.{name}"))
            names = {target.id for target in assigned(tree)} & set(constants)
            assert not names, f"{name} has constants that are in no key: {sorted(names)}"


def assigned(tree: ast.Module) -> list[ast.Name]:
    """Names that a module assigns at its top level."""
    targets: list[ast.expr] = []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign):
            targets.append(node.target)
    return [target for target in targets if isinstance(target, ast.Name)]


TASK = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/items.jsonl, dev: FOLDER/examples.jsonl}}
test_split: test
fewshot_split: dev
num_fewshot: 1
output_type: multiple_choice
doc_to_text: !function code.text
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""


def test_an_edited_capability_task_changes_the_keys_of_what_measured_it(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capability, "_manager", lambda defaults: TaskManager(include_defaults=False))  # which is quick
    items, examples, code, task = (tmp_path / n for n in ("items.jsonl", "examples.jsonl", "code.py", "task.yaml"))
    rows = "".join(f'{{"question": "{i}?", "choices": ["a", "b"], "answer": 0}}\n' for i in range(4))
    items.write_text(rows)
    examples.write_text(rows)
    code.write_text("def text(doc):\n    return doc['question']\n")
    task.write_text(TASK.replace("FOLDER", str(tmp_path)))
    evaluate = study.evaluate.model_copy(update={"capability": (str(task),)})
    study = study.model_copy(update={"evaluate": evaluate})

    def measured() -> set[str]:
        keys = node_keys(study, tmp_path / "run")
        return {key for label, key in keys.items() if label.endswith("before attack") or " under " in label}

    before = measured()
    assert measured() == before
    for path, old, new in (
        (items, '"answer": 0', '"answer": 1'),
        (examples, '"answer": 0', '"answer": 1'),
        (code, "return ", "return 'Q: ' + "),
        (task, "num_fewshot: 1", "num_fewshot: 2"),
    ):
        path.write_text(path.read_text().replace(old, new, 1))
        assert not measured() & before, path.name
        path.write_text(path.read_text().replace(new, old, 1))
        assert measured() == before, path.name
