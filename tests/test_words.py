"""Names say what things are, no two classes of the package share one, and no file tells how the project was made."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import tamperfuse

ROOT = Path(tamperfuse.__file__).parent
REPOSITORY = Path(__file__).parents[1]
MODULES = sorted(ROOT.rglob("*.py"))
OTHER_FOLDERS = ("benchmarks", "examples", "scripts", "tests")
GOLDEN = REPOSITORY / "tests" / "study" / "test_golden.py"  # stays as it was when its values were recorded
SAYS_NOTHING = frozenset(
    [
        "found",
        "kept",
        "given",
        "asked",
        "made",
        "seen",
        "own",
        "each",
        "known",
        "say",
        "told",
        "begun",
        "held",
        "mine",
        "theirs",
        "ours",
        "wanted",
    ]
)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that a module introduces, with their lines: variables, arguments, attributes, functions, classes, fields."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.arg(arg=name):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno
            case ast.alias(asname=str(name)):
                yield name, node.lineno


def empty_names(path: Path) -> list[str]:
    # A benchmark measures two sides, `ours` and `rival` in its last line.
    allowed = {"ours"} if path.is_relative_to(REPOSITORY / "benchmarks") else set()
    return [
        f"{path}:{line}: {name}"
        for name, line in identifiers(parsed(path))
        if name.strip("_").lower() in SAYS_NOTHING - allowed
    ]


def class_places() -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return places


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "a, kept = 1, 2",
        "for each in []: pass",
        "def f(given): pass",
        "def f(*, asked=1): pass",
        "def told(): pass",
        "class Known: pass",
        "class A:\n    own: int",
        "x.held = 1",
        "x = [seen for seen in y]",
        "if (made := 1): pass",
        "try: pass\nexcept ValueError as theirs: pass",
        "import os as ours",
        "lambda wanted: 1",
    ],
)
def test_a_name_that_says_nothing_is_noticed(source: str) -> None:
    assert any(name.lower() in SAYS_NOTHING for name, _ in identifiers(ast.parse(source)))


def test_names_that_contain_such_a_word_are_allowed() -> None:
    tree = ast.parse("not_found = known_tasks = x.say_hello\nfound_by(kept)\nx.found")
    assert not [name for name, _ in identifiers(tree) if name in SAYS_NOTHING]


def test_no_identifier_says_nothing() -> None:
    others = [
        path for folder in OTHER_FOLDERS for path in sorted((REPOSITORY / folder).rglob("*.py")) if path != GOLDEN
    ]
    notes = [note for path in (*MODULES, *others) for note in empty_names(path)]
    assert not notes, "Say what the thing is:\n" + "\n".join(notes)


def test_no_two_classes_share_a_name() -> None:
    notes = [f"{name}: {', '.join(places)}" for name, places in class_places().items() if len(places) > 1]
    assert not notes, "Rename the less general ones:\n" + "\n".join(notes)


# Machine paths, and documents that are not part of the repository.
FOREIGN = re.compile(
    r"(?<![\w.])/(?:work|home/\w+|Users/\w+)/|\b(?:DESIGN|STYLE|FACTS)\.md\b|NOTE_FROM_LEAD|\bno GPU here\b", re.I
)


def foreign_words(text: str) -> list[str]:
    return [match[0] for match in FOREIGN.finditer(text)]


@pytest.mark.parametrize("text", ["see DESIGN.md", "/home/someone/models", "in /work/main", "there is no GPU here"])
def test_a_foreign_word_is_noticed(text: str) -> None:
    assert foreign_words(text)


def test_no_file_tells_how_the_project_was_made() -> None:
    folders = ["src", "tests", "docs", "scripts", "benchmarks", "studies", "examples", ".github"]
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".j2", ".css", ".js", ".cff", ".txt", ".ipynb"}
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.suffix in suffixes]
    files += [
        path for path in REPOSITORY.iterdir() if path.suffix in suffixes or path.name in ("Makefile", "Dockerfile")
    ]
    notes = [
        f"{path.relative_to(REPOSITORY)}:{number}: {word}"
        for path in files
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for word in foreign_words(line)
    ]
    assert not notes, "\n".join(notes)
