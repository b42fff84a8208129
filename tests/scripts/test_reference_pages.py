"""The reference pages of the documentation are those that the models give."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("reference_pages")


def test_the_committed_pages_are_up_to_date(script: ModuleType) -> None:
    pages = script.reference_pages()
    assert {path.name for path in script.FOLDER.glob("*.md")} == set(pages)
    for name, text in pages.items():
        assert (script.FOLDER / name).read_text(encoding="utf-8") == text, (
            f"docs/reference/{name} is out of date: run python scripts/reference_pages.py"
        )


def test_every_field_is_explained_and_every_type_is_a_word_or_a_section(script: ModuleType) -> None:
    groups = (script.STUDY_SECTIONS, script.SUMMARY_SECTIONS, script.POLICY_SECTIONS)
    for sections in groups:
        for model in sections:
            for field in script.field_docs(model):
                assert field.meaning, f"{model.__name__}.{field.name} has no entry under `Attributes:`"
    classes = {model.__name__ for sections in groups for model in sections}
    pages = script.reference_pages()
    for name in ("study.md", "summary.md", "policy.md"):
        text = pages[name]
        assert not [word for word in classes if f" {word} |" in text]
    for text in pages.values():
        assert "|  |" not in text and "likewise" not in text and "None" not in text


def test_pages_are_written_into_a_folder(script: ModuleType, tmp_path: Path) -> None:
    script.main([str(tmp_path / "new")])
    assert (tmp_path / "new" / "components.md").read_text(encoding="utf-8").count("\n### ") >= 20
