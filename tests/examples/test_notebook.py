"""examples/notebook is executed from beginning to end, with the tiny model and small sizes."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

TESTS = Path(__file__).parents[1]
NOTEBOOK = TESTS.parent / "examples" / "notebook" / "first_look.ipynb"

# What takes the place of the parameters; the sentence encoder and lm-eval are replaced as by the fixture `quick_judging`.
SMALL = """
import sys

sys.path[:0] = {paths}

from stand_ins import WordCountEncoder, quick_capability
from tamperfuse.models.encoder import set_default_encoder
from tamperfuse.study import observe
from tamperfuse.study.results import intervals

set_default_encoder(WordCountEncoder())
observe.measure_capability = quick_capability
intervals.DRAWS = 20
{parameters}
"""


def notebook() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def parameters_cell(book: NotebookNode) -> NotebookNode:
    (cell,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def names(code: str) -> set[str]:
    values: dict[str, object] = {}
    exec(code, values)
    return {name for name in values if name.isupper()}


def test_it_is_stored_without_outputs() -> None:
    book = notebook()
    nbformat.validate(book)
    assert not [cell.id for cell in book.cells if cell.get("outputs") or cell.get("execution_count")]


def test_its_links_exist() -> None:
    text = "\n".join(cell.source for cell in notebook().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert links and all((NOTEBOOK.parent / link).exists() for link in links)


@pytest.mark.slow
def test_every_cell_runs_and_the_last_one_draws_the_results(
    tiny_folder: Path, threat_file: Path, benign_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TAMPERFUSE_CACHE", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    small = {
        "MODEL": str(tiny_folder),
        "THREAT": str(threat_file),
        "BENIGN": str(benign_file),
        "STEPS": 1,
        "SHOTS": 2,
        "ATTACK_STEPS": 1,
        "PROMPTS": 4,
        "HARMLESS": 4,
        "ITEMS": 2,
    }
    book = notebook()
    cell = parameters_cell(book)
    assert names(cell.source) == small.keys()
    lines = "\n".join(f"{name} = {value!r}" for name, value in small.items())
    cell.source = SMALL.format(paths=[str(TESTS.parent / "src"), str(TESTS)], parameters=lines)
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell.id: cell.outputs for cell in book.cells if cell.cell_type == "code"}
    assert "as shipped" in outputs["evaluate"][-1].data["text/plain"]
    assert "harmful execution" in outputs["plot"][-1].data["image/svg+xml"]
    assert not list(tmp_path.glob("*.safetensors")), "nothing is saved"
