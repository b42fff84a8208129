"""`tamperfuse report A B`: several runs on one page, with what differs between them, and links to their own pages."""

import re
from pathlib import Path

import pytest
from made_up_run import summary, write_folder

from tamperfuse.cli.app import main
from tamperfuse.records.errors import UserError
from tamperfuse.records.run import read_run, write_run
from tamperfuse.report import html as html_module
from tamperfuse.report.comparison import write_comparison


@pytest.fixture(autouse=True)
def _no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_module, "_library", lambda: "")


def cells(html: str, name: str) -> list[str]:
    """The cells of a table's row."""
    row = re.search(rf'<th scope="row">{name}(?:<small>.*?</small>)?</th>(.*?)</tr>', html, re.S)
    assert row
    return [re.sub(r"<[^>]+>", " ", cell).split()[0] for cell in re.findall(r"<td[^>]*>(.*?)</td>", row[1], re.S)]


def test_runs_side_by_side(tmp_path: Path) -> None:
    other = summary()
    del other.defenses["sdd"].harmful_execution.after_attack["lora-10"]
    other.defenses["sdd"].reduction_vs_undefended.attacks_that_count.remove("lora-10")
    runs = [write_folder(tmp_path / "one"), write_folder(tmp_path / "two & more", measured=other)]
    study = runs[1] / "study.yaml"
    study.write_text(study.read_text().replace("builtin:cooking", "<b>mine</b>"), encoding="utf-8")
    html = write_comparison(runs, tmp_path / "pages" / "comparison.html").read_text(encoding="utf-8")
    assert "<b>" not in html and "&lt;b&gt;mine" in html and "two &amp; more" in html
    assert "The runs differ in threat, so their numbers cannot be compared" in html
    assert cells(html, "<code>threat</code>") == ["builtin:cooking", "&lt;b&gt;mine&lt;/b&gt;"]
    assert cells(html, "lora-10") == ["94%", "89%", "94%", "–"]
    assert cells(html, "benign answer rate") == ["94.5%", "92.2%", "94.5%", "92.2%"]
    assert cells(html, "reduction vs undefended, pooled") == ["–", "6.1%", "–", "6.1%"]
    for run, link in zip(runs, ("../one/report.html", "../two%20%26%20more/report.html"), strict=True):
        assert (run / "report.html").exists() and f'href="{link}"' in html and f'href="{link}#curve-full-100"' in html


def test_what_rests_on_an_attack_that_diverged_is_not_compared(tmp_path: Path) -> None:
    other = summary()
    other.defenses["sdd"].diverged.append("lora-10")
    runs = [write_folder(tmp_path / "one"), write_folder(tmp_path / "two", measured=other)]
    study = runs[1] / "study.yaml"
    study.write_text(study.read_text() + "retain: mine.jsonl\nchat_template: chat.jinja\n", encoding="utf-8")
    html = write_comparison(runs, tmp_path / "comparison.html").read_text(encoding="utf-8")
    for name in (
        "worst malicious attack",
        "mean over malicious attacks",
        "worst control",
        "reduction vs undefended, pooled",
    ):
        assert cells(html, name)[3] == "diverged" and cells(html, name)[1] != "diverged"
    assert cells(html, "before any attack")[3] == "1%"
    assert "The runs differ in chat_template, retain, so their numbers cannot be compared" in html


def test_other_versions_of_the_computations_are_not_comparable(tmp_path: Path) -> None:
    runs = [write_folder(tmp_path / name) for name in ("one", "two")]
    record = read_run(runs[1]).model_copy(update={"numerics": 12, "precision": "float32"})
    write_run(runs[1], record)
    html = write_comparison(runs, tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "The runs differ in numerics version, precision, so their numbers cannot be compared" in html
    assert cells(html, "<code>numerics version</code>") == ["unknown", "12"]
    assert cells(html, "<code>precision</code>") == ["bf16", "float32"], "first words"


def test_an_attack_that_counts_in_one_run_alone_is_part_of_both(tmp_path: Path) -> None:
    weak = summary()
    for defense in weak.defenses.values():
        defense.reduction_vs_undefended.attacks_that_count.remove("lora-10")
        defense.reduction_vs_undefended.too_weak.append("lora-10")
    runs = [write_folder(tmp_path / "one"), write_folder(tmp_path / "two", measured=weak)]
    html = write_comparison(runs, tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "not part of this run" not in html and "in this run under: " in html


def test_equal_studies_and_equal_names(tmp_path: Path) -> None:
    runs = [write_folder(tmp_path / place / "demo") for place in ("a", "b")]
    html = write_comparison(runs, tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "Nothing. The studies have the same settings." in html and "The runs differ" not in html
    assert "SDD, a/demo" in html and "SDD, b/demo" in html
    with pytest.raises(UserError, match="named twice"):
        write_comparison([runs[0], runs[0]], tmp_path / "comparison.html")
    (runs[1] / "summary.json").unlink()
    with pytest.raises(UserError, match=r"summary\.json"):
        write_comparison(runs, tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write_folder(tmp_path / name)
    for words in (["report", "one", "two"], ["report", "one", "two", "--out", "pages/both.html"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0 and words[-1].replace("two", "comparison") in capsys.readouterr().out
    assert (tmp_path / "comparison.html").exists() and (tmp_path / "pages" / "both.html").exists()
    with pytest.raises(SystemExit) as end:
        main(["report", "one", "--out", "one.html"])
    assert end.value.code == 2 and "--out" in capsys.readouterr().err
