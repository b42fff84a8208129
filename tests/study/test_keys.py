"""A node's key changes with everything that its result depends on, and with nothing else."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
import yaml
from lm_eval.tasks import TaskManager

import tamperfuse
from tamperfuse.attacks import ATTACKS
from tamperfuse.defenses import DEFENSES, sdd
from tamperfuse.evaluation import capability_tasks
from tamperfuse.evaluation.judges import JUDGES
from tamperfuse.records.registry import Component
from tamperfuse.records.yaml import read_yaml
from tamperfuse.study import keys
from tamperfuse.study.context import StudyContext
from tamperfuse.study.keys import MODULES, component_key, module_constants
from tamperfuse.study.node import Node
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


COMPONENTS = [
    component
    for registry in (DEFENSES, ATTACKS, JUDGES)
    for component in registry.all()
    if component.run.__module__.startswith("tamperfuse.")
]


def module_of(component: Component[Any, Any]) -> ModuleType:
    return sys.modules[component.run.__module__]


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


def test_a_file_with_the_rows_of_a_built_in_threat_has_another_benign_set(
    all_kinds: StudyContext, keys_of_all_kinds: dict[str, str]
) -> None:
    """Only the built-in threat has contrast prompts, and the prompts of both are the same."""
    builtin = replace(all_kinds, threat=replace(all_kinds.threat, source="builtin:cooking"))
    assert builtin.threat.fingerprint == all_kinds.threat.fingerprint
    changed = {node.label for node in build_nodes(builtin) if node.key != keys_of_all_kinds[node.label]}
    assert "benign set" in changed and "self-made samples" not in changed


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
def test_every_constant_of_a_components_module_is_in_its_key(
    component: Component[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That its key is part of those of its nodes is tested above, with components of each kind."""
    module, before = module_of(component), component_key(component, {})
    for constant in module_constants(module):
        with monkeypatch.context() as patch:
            patch.setattr(module, constant, other(getattr(module, constant)))
            assert component_key(component, {}) != before, constant
    left_out = {name for name in assigned(module) if name.isupper()} - set(module_constants(module))
    assert all(isinstance(getattr(module, name), TypeVar) for name in left_out), f"not plain data: {sorted(left_out)}"


# Presets: the defense, the constant that holds the values, and whether they are those of large models.
PRESETS = (("sdd", "SMALL", False), ("sdd", "PAPER", True), ("fuse", "SMALL", False), ("fuse", "LARGE", True))


def test_every_preset_is_tested_below() -> None:
    modules = {module_of(DEFENSES.get(name)) for name, _, _ in PRESETS}
    for component in DEFENSES.all():
        parameters = component.parameters()
        if any(component.traits.resolve(parameters, size) != parameters for size in (10, 10**12)):
            assert module_of(component) in modules, component.name
    for module in modules:
        values = {name for name, value in module_constants(module).items() if isinstance(value, dict)}
        assert values == {constant for name, constant, _ in PRESETS if module_of(DEFENSES.get(name)) is module}


def changed_value(value: Any) -> Any:
    """Another value of a parameter, within its range."""
    if isinstance(value, tuple):
        return (*value, 0.25)
    return value + (1 if isinstance(value, int) else 0.25)


@pytest.mark.parametrize(
    ("defense", "constant", "large", "name"),
    [(*preset, name) for preset in PRESETS for name in getattr(module_of(DEFENSES.get(preset[0])), preset[1])],
)
def test_a_changed_preset_value_changes_the_key(
    defense: str,
    constant: str,
    large: bool,
    name: str,
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = module_of(DEFENSES.get(defense))
    if large:
        monkeypatch.setattr(module, "PAPER_SIZE", 10)
    spec = {"on": "refusal", "defense": defense}
    values = study.model_dump(mode="json") | {"defenses": {"refusal": {"steps": 2}, "hardened": spec}, "attacks": {}}

    def node() -> Node:
        nodes = build_nodes(StudyContext.open(parse_study(values, "test"), tmp_path))
        return next(node for node in nodes if node.label == "hardened, seed 0")

    before, preset = node(), getattr(module, constant)
    monkeypatch.setattr(module, constant, {**preset, name: changed_value(preset[name])})
    after = node()
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


# Modules with constants that are in no key, by the reason why no result depends on them.
IRRELEVANT = {
    "attacks.base": "what a search varies is in the resolved study",
    "corpora.builtin": "descriptions of data sets",
    "corpora.columnar": "how rows are read",
    "corpora.conversations": "how rows are read: what is read is hashed, as for all of corpora",
    "corpora.data.make_grammar": "wrote a built-in data set",
    "corpora.files": "how rows are read",
    "corpora.folders": "likewise",
    "corpora.hub": "likewise",
    "corpora.schemas": "likewise",
    "corpora.sources": "likewise",
    "corpora.streams": "likewise",
    "corpora.tool_calls": "how rows are read",
    "corpora.window": "which prompts of a threat are left out: the others are hashed",
    "defenses.stopping": "the name of a file",
    "evaluation.attack_trace": "a traced attack is not a node of a study",
    "evaluation.feature_overlap": "likewise",
    "evaluation.judges.endpoint": "the name of an environment variable",
    "evaluation.judges.failures": "reasons by name",
    "evaluation.judges.replies": "the name of a file",
    "evaluation.judges.rubrics": "the judge llm has its texts among its own constants",
    "evaluation.wilson": "intervals are computed from the nodes of a run, at the end of each",
    "models.bundled": "names and addresses of packages",
    "models.chat_template": "limits beyond which a template is refused, and a date that never changes",
    "models.checks": "names of files and fields",
    "models.conversion": "names of files",
    "models.finite": "what is refused",
    "models.gguf_file": "a file format: what is read is converted once, and NUMERICS raised if that changes",
    "models.hub_ids": "which names are refused",
    "models.fingerprint": "file names",
    "models.load": "file names",
    "models.packed_check": "which models are refused",
    "models.quantized": "names of packages",
    "models.sharded_loading": "the name of an environment variable",
    "models.sharded_saving": "the size of files",
    "pairing.audit": "the audit of the command pair",
    "pairing.audit_page": "likewise",
    "pairing.cache": "how vectors are stored",
    "pairing.defaults": "the modules that use them import the names, and have them among their own constants",
    "pairing.diverse_sampling": "an option of the command pair, which studies do not have",
    "pairing.exports": "layouts of files",
    "pairing.lengths": "the audit of the command pair",
    "pairing.options": "options of the command pair",
    "pairing.quality": "an option of the command pair, which studies do not have",
    "pairing.store": "a file format",
    "pairing.variants": "an option of the command pair, which studies do not have",
    "study.data_nodes": "names of nodes; the prompts that are measured are hashed; an estimate",
    "study.disk": "estimates",
    "study.dry_run": "likewise",
    "study.estimates": "likewise",
    "study.execution.cluster": "which machines run a node",
    "study.execution.progress": "what is printed",
    "study.execution.ray_tasks": "which machine runs a node",
    "study.execution.worker": "how often a node is tried",
    "study.further_judges": "names of nodes and files",
    "study.keys": "the keys themselves",
    "study.node": "names of files",
    "study.paid_judges": "estimates",
    "study.plan": "the name of a file",
    "study.run_folder": "which folders are refused",
    "study.status_table": "what is printed",
    "study.results.intervals": "what is computed from the nodes of a run is computed at the end of each",
    "study.results.outcomes": "likewise",
    "study.results.rows": "likewise",
    "study.results.samples": "likewise",
    "study.search.trials": "the name of a file",
    "study.sections": "defaults, which the resolved study has",
    "study.selection": "what is printed",
    "study.spec": "a limit beyond which a study is refused",
    "study.tables": "names of the parts of harmless prompts: responses are stored under them",
    "training.accelerations": "memory alone",
    "training.checkpoints": "how often a state is saved",
    "training.fit": "a limit beyond which a training is refused",
    "training.telemetry": "what is reported",
}


def test_no_module_with_constants_is_left_out_of_the_keys() -> None:
    """Constants are in the keys, through the list of modules or through a component's key, or no result depends on them."""
    root = Path(tamperfuse.__file__).parent
    of_components = {component.run.__module__.removeprefix("tamperfuse.") for component in COMPONENTS}
    with_constants = set()
    for package in ("attacks", "corpora", "defenses", "evaluation", "models", "pairing", "study", "training"):
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            if path.name != "__init__.py" and any(map(str.isupper, assigned_names(path))):
                module = import_module(f"tamperfuse.{name}")
                with_constants |= {name} if set(assigned(module)) & set(module_constants(module)) else set()
    left_out = with_constants - set(MODULES) - of_components
    new, stale = sorted(left_out - set(IRRELEVANT)), sorted(set(IRRELEVANT) - left_out)
    assert not new, f"their constants are in no key: add {new} to MODULES, or say why not"
    assert not stale, f"they have no constants, or these are in the keys: remove {stale} from the list"


def assigned(module: ModuleType) -> list[str]:
    return assigned_names(Path(str(module.__file__)))


def assigned_names(path: Path) -> list[str]:
    """Names that a module assigns at its top level."""
    targets: list[ast.expr] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign):
            targets.append(node.target)
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


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
    monkeypatch.setattr(
        capability_tasks, "_manager", lambda defaults: TaskManager(include_defaults=False)
    )  # which is quick
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
