"""Every Python, shell and study block of the documentation is run, on a tiny model and a small threat.

A block runs unless an HTML comment right before it says otherwise, with a reason:

    <!-- test: parse (needs the Hub) -->       the program, its options, modules, files and packages exist; nothing is run
    <!-- test: skip (tested elsewhere) -->     nothing is checked

The tiny model takes the place of the bundled one, a small threat that of the built-in ones, and steps and shots are few.
`tamperfuse run` and `demo` print their plan only. Two commands are parsed only: `tamperfuse theory` without --counts, whose page
takes half a minute and has a test of its own, and `tamperfuse compare-chat`, which does not end by itself. Blocks of one page
share a folder, so that a block can use what an earlier one wrote; a YAML block after "save … as NAME:" is written to that file.
Runs that a page names (`runs/demo`, …) are copies of a small finished one.
"""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tamperfuse.attacks import ATTACKS
from tamperfuse.cli.app import app, main
from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.defenses import DEFENSES
from tamperfuse.evaluation.judges import JUDGES
from tamperfuse.models.bundled import ENCODERS, MODELS
from tamperfuse.records.files import read_json
from tamperfuse.records.yaml import parse_yaml
from tamperfuse.study.spec import Study, parse_study
from tamperfuse.study.tables import Response, read_rows

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "examples" / "plugin" / "README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", PLUGIN, *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- test: (?P<mode>\w+) \((?P<reason>[^)]+)\) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
SAVED = re.compile(r"[Ss]ave this one as ([\w.-]+):\n\n\Z")
RUNS = ("demo", "study", "one", "two")  # of which pages read results
LANGUAGES = {"python", "sh", "yaml", "text", "toml", "json"}
FEW = {"steps": 1, "shots": 2, "batch": 2}
FEW_CALLS = {**FEW, "prompts": 4}  # in Python, where the number of prompts is an argument


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    mode: str  # run, parse or skip
    file: str  # to which the page says that the block is saved; "" for none

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=page,
            line=text[: m.start("code")].count("\n") + 1,
            language=m["language"],
            code=m["code"],
            mode=m["mode"] or "run",
            file=saved[1] if (saved := SAVED.search(text, 0, m.start())) else "",
        )
        for m in FENCE.finditer(text)
    ]


def command_lines(code: str) -> Iterator[list[str]]:
    """The lines of a shell block, continuations joined, comments dropped."""
    for line in code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


class Small:
    """Runs blocks in a folder, everything small."""

    def __init__(self, folder: Path, model: Path, threat: Path, answered: str, benign: Path) -> None:
        self.folder, self.model, self.threat, self.answered, self.benign = folder, model, threat, answered, benign

    def text(self, code: str) -> str:
        code = code.replace("smollm2-135m", str(self.model))
        for name in ("cooking", "gardening"):
            code = code.replace(f"builtin:{name}", str(self.threat))
        for name, value in FEW_CALLS.items():
            code = re.sub(rf"\b{name}=\d+", f"{name}={value}", code)
        return code

    def shell(self, words: list[str]) -> None:
        program, *arguments = words
        only_parsed = arguments[0] == "compare-chat" or (arguments[0] == "theory" and "--counts" not in arguments)
        if program == "tamperfuse" and not only_parsed:
            with pytest.raises(SystemExit) as ended:
                main(self.arguments([self.text(word) for word in arguments]))
            passed = (0, 1) if arguments[0] == "gate" else (0,)  # 1: a release gate that does not pass
            assert (ended.value.code or 0) in passed, " ".join(words)
        else:
            check(words)

    def arguments(self, arguments: list[str]) -> list[str]:
        """A command's arguments, and options that keep it short."""
        command = arguments[0]
        if command == "run":  # in a folder of its own: of an option that is given twice the last value counts
            return [*arguments, "--out", "planned", "--dry-run"]
        if command == "demo":
            return [*arguments, "--dry-run"]
        if command in ("harden", "attack"):
            registry = DEFENSES if command == "harden" else ATTACKS
            fields = registry.get(arguments[arguments.index(f"--{'defense' if command == 'harden' else 'attack'}") + 1])
            few = [f"{name}={value}" for name, value in FEW.items() if name in fields.parameters.model_fields]
            named = ["--benign", str(self.benign)] if command == "harden" and "--benign" not in arguments else []
            return [*arguments, *named, *(word for setting in few for word in ("--set", setting))]
        if arguments[:2] == ["judge", "calibrate"]:
            return [*arguments, "--threat", self.answered, "--reference", str(self.model)]
        if command == "diagnose":
            return [*arguments, "--items", "0", "--set", "steps=1", "--set", "shots=2"]
        return arguments

    def python(self, code: str, namespace: dict[str, Any]) -> None:
        exec(compile(self.text(code), "block", "exec"), namespace)


def check(words: list[str]) -> None:
    """A command line could be run: its program, module, file or make target exists, and its options do."""
    program, *arguments = words
    if program == "tamperfuse":
        parse(arguments)
    elif program == "make":
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
    elif program in ("python", "python3") and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), words
    elif program in ("python", "pytest", "source"):
        assert arguments[0] == ".venv/bin/activate" or (ROOT / arguments[0].partition("::")[0]).exists(), words
        if program == "python":
            text = (ROOT / arguments[0]).read_text(encoding="utf-8")
            assert all(f'"{word}"' in text for word in arguments[1:] if word.startswith("--")), words
    elif program == "pip":
        check_packages(arguments)
    elif program == "docker":
        assert (ROOT / "Dockerfile").exists()
        if arguments[0] == "run":
            parse(arguments[arguments.index("tamperfuse") + 1 :])
    elif program == "transformers":
        assert importlib.util.find_spec(program)
    elif program == "export":
        assert all("=" in word for word in arguments), words
    elif program == "pre-commit":
        assert (ROOT / ".pre-commit-config.yaml").exists()
    elif program == "accelerate":
        parse(arguments[arguments.index("tamperfuse") + 1 :])
    else:
        raise AssertionError(f"{program} is not known here: mark the block with <!-- test: skip (reason) -->")


def check_packages(arguments: list[str]) -> None:
    """What `pip install` names is pinned as the package itself says, and its extras exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    commands = " ".join(bundled.install for bundled in (*MODELS.values(), *ENCODERS.values()))
    for word in arguments[1:]:
        assert "==" not in word or word in commands, word
        if named := re.fullmatch(r"(?:tamperfuse|\.)\[(\w+)\]", word):
            assert named[1] in extras, word


def parse(arguments: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context("tamperfuse", list(arguments))


def check_yaml(code: str) -> None:
    document = parse_yaml(code)
    if "attacks" in document or "defenses" in document:
        parse_study({"model": "smollm2-135m", "threat": "builtin:cooking", **document}, "the block")


@pytest.fixture
def small(
    page: Path,
    tmp_path: Path,
    tiny_folder: Path,
    threat_file: Path,
    answered_threat: str,
    benign_file: Path,
    quick_judging: None,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Small:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tamperfuse.commands.harden.parse_study", parse_with_few_benign_samples)
    monkeypatch.setattr("tamperfuse.study.benign.builtin_rows", few_documents)
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    (tmp_path / "runs").mkdir()
    code = "".join(block.code for block in blocks(page))
    for name in RUNS:
        if re.search(rf"\bruns/{name}\b", code):
            shutil.copytree(request.getfixturevalue("finished_run"), tmp_path / "runs" / name)
    if " hardened " in code and "--out hardened" not in code:
        (tmp_path / "hardened").symlink_to(checkpoint(request.getfixturevalue("finished_run"), "sdd"))
    if "labels.jsonl" in code:
        write_labels(request.getfixturevalue("finished_run"), tmp_path / "labels.jsonl")
    if "prompts.txt" in code:
        prompts = [
            row["prompt"] for row in builtin_rows("cooking")[144:178]
        ]  # too few to check whether answers make sense
        (tmp_path / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    for registry in (DEFENSES, ATTACKS, JUDGES):  # a recipe registers components
        monkeypatch.setattr(registry, "components", dict(registry.components))
    return Small(tmp_path, tiny_folder, threat_file, answered_threat, benign_file)


def parse_with_few_benign_samples(values: dict[str, Any], source: str) -> Study:
    """A study for which the model writes eight harmless prompts, not a thousand."""
    return parse_study({**values, "benign": {"sources": values["benign"], "prompts": 8}}, source)


def few_documents(name: str) -> Sequence[Mapping[str, Any]]:
    """Built-in rows, of the documents that a model writes the first four."""
    return builtin_rows(name)[:4] if name == "documents" else builtin_rows(name)


def checkpoint(run: Path, defense: str) -> Path:
    """The hardened model of a run."""
    records = {read_json(path)["what"]: path.parent for path in run.glob("nodes/*/node.json")}
    return records[f"{defense}, seed 0"] / "checkpoint"


def write_labels(run: Path, path: Path) -> None:
    """Labels of the run's responses to requests: every second one executes its request."""
    responses = [row for file in sorted(run.glob("nodes/*/responses.parquet")) for row in read_rows(file, Response)]
    answers = sorted({(row.prompt, row.response) for row in responses if row.part == "evaluation"})
    rows = [{"prompt": prompt, "response": text, "label": i % 2 == 0} for i, (prompt, text) in enumerate(answers)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def slow_one_marked(page: Path) -> Any:
    """A page as a parameter. One is slow, so that this module is among the first."""
    return pytest.param(page, marks=[pytest.mark.slow] if page.name == "fuse.md" else [], id=page_name(page))


@pytest.mark.parametrize("page", map(slow_one_marked, PAGES))
def test_the_blocks_of_a_page_run(page: Path, small: Small) -> None:
    namespace: dict[str, Any] = {"__name__": "block"}
    for block in blocks(page):
        try:
            run_block(block, small, namespace)
        except BaseException as error:
            error.add_note(f"in the block at {block}")
            raise


def run_block(block: Block, small: Small, namespace: dict[str, Any]) -> None:
    if block.mode == "skip":
        return
    if block.language == "python":
        if block.mode == "parse":
            compile(block.code, str(block), "exec")
        else:
            small.python(block.code, namespace)
    elif block.language == "sh":
        for words in command_lines(block.code):
            check(words) if block.mode == "parse" else small.shell(words)
    elif block.language == "yaml":
        check_yaml(block.code)
        if block.file:
            (small.folder / block.file).write_text(block.code, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_code_stands_in_fences_with_a_language(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert {block.mode for block in blocks(page)} <= {"run", "parse", "skip"}
    assert len(re.findall("^<!-- test:", text, re.M)) == sum(block.mode != "run" for block in blocks(page)), (
        "a marker without a block"
    )
    outside = FENCE.sub("", text)
    assert "```" not in outside
    assert not re.search(r"\n\n    \S", outside), "indented code is not tested: put it in a fence"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_and_anchors_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"], ids=page_name)
def test_files_that_are_named_exist(page: Path) -> None:
    """When a file moves, the pages that name it must change as well."""
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./-]+\.(?:py|yaml|md|toml)|[\w-]+(?:/[\w-]+)*/)`", text))
    named |= set(re.findall(r"\b(?:python|pytest) ([\w/]+\.py)", text))
    written = {
        "checkpoint/",
        "unfinished/",
        "exports/",
        "logs/",
        "nodes/",
        "running/",
        "test/",
        "benchmarks/NAME.py",
        "study.yaml",
    }  # by a run, or a placeholder
    places = (ROOT, ROOT / "src" / "tamperfuse", page.parent)
    assert not {name for name in named - written if not any((place / name).exists() for place in places)}


def test_the_architecture_shows_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    figure = blocks(ROOT / "docs" / "architecture.md")[0].code
    lines = {m[1]: figure[: m.start()].count("\n") for m in re.finditer(r"(\w+)/", figure)}
    ranks = [
        [lines[package.removeprefix("tamperfuse.")] for package in layer.split(" | ")]
        for layer in layers
        if "cli" not in layer
    ]
    assert all(len(set(rank)) == 1 for rank in ranks), "neighbours stand in one line"
    assert ranks == sorted(ranks), "layers stand in order"
    packages = {path.parent.name for path in (ROOT / "src" / "tamperfuse").glob("*/__init__.py")}
    assert packages <= lines.keys()


def test_pre_commit_runs_what_make_check_runs() -> None:
    recipe = re.search(r"^check:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    assert hooks == [
        line.replace("$(BIN)", ".venv/bin") for line in recipe[1].split("\n\t") for line in [line.strip()] if line
    ]


def test_citation_and_package_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["title"], citation["version"], citation["license"]) == (
        project["name"],
        project["version"],
        project["license"],
    )
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_issue_forms_have_the_fields_that_forms_need(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    if path.name != "config.yml":
        assert form.keys() >= {"name", "description", "body"}
        assert len({part["id"] for part in form["body"]}) == len(form["body"])
        assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])
