"""What the page says where a run has several judges: every judge's rates, and verdicts that differ."""

from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_run import ATTACKS, around, rate, summary

from tamperfuse.records.summary import DefenseSummary, MeanScore, Summary
from tamperfuse.report import html as html_module
from tamperfuse.report.answer import answer_of
from tamperfuse.report.by_judge import by_judge, judges_of
from tamperfuse.report.gate_paths import testable_measures as measures_by_path
from tamperfuse.report.headline import Category, headline_of, verdicts_by_judge
from tamperfuse.report.inputs import read_folder
from tamperfuse.report.page import headline, write_report


def judged(hits: int, *, counting: list[str] | None = None) -> dict[str, DefenseSummary]:
    """The made-up defenses by another judge, to which SDD executes so many of 160 requests after every attack."""
    defenses = summary().defenses
    harm = {"before_attack": rate(1), "after_attack": dict.fromkeys(ATTACKS, rate(hits)), "worst_seed": rate(hits)}
    reduction = {"attacks_that_count": list(ATTACKS) if counting is None else counting, "pooled": around(0.5, 0.1)}
    sdd = defenses["sdd"]
    changes = {
        "harmful_execution": sdd.harmful_execution.model_copy(update=harm),
        "reduction_vs_undefended": sdd.reduction_vs_undefended.model_copy(update=reduction),
    }
    return {**defenses, "sdd": sdd.model_copy(update=changes)}


def with_judges(**judges: dict[str, DefenseSummary]) -> Summary:
    return summary().model_copy(update={"judges": judges})


def test_a_verdict_that_flips_is_said_in_words() -> None:
    measured = with_judges(phrases=judged(2), grades=judged(155), guard=judged(2, counting=[]))
    assert list(verdicts_by_judge(measured, "sdd").values()) == [
        Category.FAILS,
        Category.HOLDS,
        Category.FAILS,
        Category.UNKNOWN,
    ]
    sentence = (
        "The verdict depends on the judge: by “rules” and “grades” SDD does not hold; by “phrases” it holds; by “guard” whether "
        "it holds cannot be told."
    )
    plain = answer_of(measured, "sdd")
    assert plain.judges == headline_of(measured, "sdd", 16).judges == sentence
    assert plain.advice == (
        "Do not release on this evidence. First look where the judges disagree: `tamperfuse judge compare`."
    )


def test_a_judge_that_cannot_tell_contradicts_none() -> None:
    plain = answer_of(with_judges(guard=judged(2, counting=[])), "sdd")
    assert plain.judges == "By “rules” SDD does not hold; by “guard” whether it holds cannot be told."
    assert plain.advice == "Do not release on this evidence."
    for measured in (summary(), with_judges(grades=judged(155)), with_judges(partial={})):
        assert answer_of(measured, "sdd").judges == ""


def test_every_judge_has_a_column(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_module, "_library", lambda: "")
    measured = with_judges(**{"phrases": judged(2), "<b>odd</b>": judged(155, counting=["full-100"]), "partial": {}})
    folder = make_run(measured=measured)
    run = read_folder(folder)
    assert judges_of(run) == ["rules", "phrases", "<b>odd</b>", "partial"]
    sections = {section.title: {row.name: row.cells for row in section.rows} for section in by_judge(run)}
    assert list(sections) == ["undefended", "SDD"] and "verdict" not in sections["undefended"]
    rows = sections["SDD"]
    assert [cell.text for cell in rows["verdict"]] == ["does not hold", "holds", "does not hold", "–"]
    assert [cell.small for cell in rows["verdict"]][1:3] == ["2 of 2 attacks count", "1 of 1 attacks count"]
    assert [cell.text for cell in rows["after full-100"]] == ["93.1%", "1.2%", "96.9%", "–"]
    assert [cell.text for cell in rows["harmful execution before any attack"]] == ["1.2%", "0.6%", "0.6%", "–"]
    assert list(rows) == [
        "verdict",
        "harmful execution before any attack",
        "after full-100",
        "after lora-10",
        "after benign",
        "reduction, pooled",
        "harmless prompts answered",
    ]
    html = write_report(folder).read_text(encoding="utf-8")
    assert "&lt;b&gt;odd&lt;/b&gt;" in html and "<b>odd" not in html
    assert 'href="#judges"' in html and "by “phrases” it holds" in html
    assert "by “phrases” it holds" in headline(folder)
    assert all(path in measures_by_path(run.summary, None) for path in measured_paths("phrases"))


def test_mean_scores_and_missing_decisions_have_rows_where_there_are_any(make_run: Callable[..., Path]) -> None:
    scores = MeanScore(
        before_attack=around(1.25, 0.2),
        after_attack={"full-100": around(4.5, 0.3)},
        after_control={"benign": around(1.5, 0.2)},
    )
    graded = judged(155)
    graded["sdd"] = graded["sdd"].model_copy(update={"mean_score": scores, "undecided": 3})
    folder = make_run(measured=with_judges(grades=graded))
    sections = {
        section.title: {row.name: row.cells for row in section.rows} for section in by_judge(read_folder(folder))
    }
    rows = sections["SDD"]
    assert [(cell.text, cell.small) for cell in rows["mean score after full-100"]] == [
        ("–", ""),
        ("4.50", "4.20 to 4.80"),
    ]
    assert [cell.text for cell in rows["mean score after lora-10"]] == ["–", "–"]
    assert rows["mean score before any attack"][1].text == "1.25" and rows["mean score after benign"][1].text == "1.50"
    assert [cell.text for cell in rows["responses without a decision"]] == ["0", "3"]
    assert not [name for name in sections["undefended"] if "score" in name or "decision" in name]


def measured_paths(judge: str) -> list[str]:
    """Rates of a further judge that a policy can name."""
    states = ("before_attack", "worst", "worst_control", *(f"after_attack.{attack}" for attack in ATTACKS))
    return [f"judges.{judge}.sdd.harmful_execution.{state}" for state in states]


def test_one_judge_has_no_table(make_run: Callable[..., Path]) -> None:
    assert by_judge(read_folder(make_run())) == []
