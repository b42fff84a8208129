"""The tables of the documentation are those that its scripts make of the published results."""

import importlib
import re
from pathlib import Path

import pytest

from tamperfuse.records.errors import UserError

ROOT = Path(__file__).parents[2]
TABLES = re.compile(
    r"<!-- tables: python scripts/(\w+)\.py ((?:studies/results/\S+ )+)\S+ -->\n(.*?)\n<!-- end of tables -->",
    re.DOTALL,
)


def published() -> list[tuple[str, str, list[str], str]]:
    """Page, script, folders of results, and text of each table."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        (page.name, script, folders.split(), text)
        for page in pages
        for script, folders, text in TABLES.findall(page.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(("page", "script", "folders", "text"), published())
def test_a_page_has_the_tables_of_the_published_results(
    page: str, script: str, folders: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    comment = f"<!-- tables: python scripts/{script}.py"
    (tmp_path / page).write_text(f"{comment} x -->\n<!-- end of tables -->\n", encoding="utf-8")
    arguments = [*(str(ROOT / folder) for folder in folders), str(tmp_path / page)]
    importlib.import_module(script).main(arguments)
    written = (tmp_path / page).read_text(encoding="utf-8")
    assert written.partition("\n")[2] == f"{text}\n<!-- end of tables -->\n"


def test_there_are_such_tables() -> None:
    assert {script for _, script, _, _ in published()} >= {
        "attacks_table",
        "demo_table",
        "fuse_table",
        "paper_table",
        "variants_table",
    }


def test_of_several_tables_of_a_script_in_a_page_one_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    replace_tables = importlib.import_module("pages").replace_tables
    page, place = tmp_path / "page.md", "<!-- tables: python scripts/a.py {} -->\nold\n<!-- end of tables -->\n"
    page.write_text(place.format("one") + place.format("two"), encoding="utf-8")
    replace_tables(page, "python scripts/a.py two", "new")
    text = place.format("one") + place.format("two").replace("old", "new")
    assert page.read_text(encoding="utf-8") == text
    with pytest.raises(UserError, match="has 2 places for tables of this script"):
        replace_tables(page, "python scripts/a.py three", "new")
    assert page.read_text(encoding="utf-8") == text
