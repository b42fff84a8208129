"""Files of the release gate: a JUnit file for CI services, and a section for a model card."""

from xml.etree import ElementTree

from tamperfuse.records.errors import printable
from tamperfuse.report.formatting import MISSING, markdown_cell
from tamperfuse.report.gate import Check, GateResult


def interval_text(check: Check) -> str:
    """The interval as text; one end of it is missing for a bound, such as the cost of an attack that never succeeded."""
    if check.low is not None and check.high is not None:
        return f"{check.low:.3f} to {check.high:.3f}"
    if check.low is not None:
        return f"{check.low:.3f} or more"
    return MISSING if check.high is None else f"{check.high:.3f} or less"


def number_text(value: float | None, *, signed: bool = False) -> str:
    """A value or a margin with three decimals; a dash for None."""
    if value is None:
        return MISSING
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def junit_text(result: GateResult) -> str:
    """A JUnit file: one test case a rule, a failure with its reason where the rule is not met."""
    failures = sum(not check.passed for check in result.checks)
    counts = {"tests": str(len(result.checks)), "failures": str(failures), "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "tamperfuse gate", **counts, "time": "0"})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _about(result):
        ElementTree.SubElement(properties, "property", {"name": name, "value": printable(value)})
    for check in result.checks:
        name = printable(f"{check.measure} {check.rule}")
        case = ElementTree.SubElement(suite, "testcase", {"classname": "tamperfuse.gate", "name": name, "time": "0"})
        if not check.passed:
            failure = ElementTree.SubElement(case, "failure", {"type": check.verdict, "message": printable(check.why)})
            failure.text = _figures(check)
        ElementTree.SubElement(case, "system-out").text = _figures(check)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _about(result: GateResult) -> list[tuple[str, str]]:
    """What was checked, as names and values."""
    about = [("model", result.model), ("threat", result.threat), ("judge", result.judge)]
    about.append(("seeds", ", ".join(map(str, result.seeds))))
    return about if result.defense is None else [("defense", result.defense), *about]


def _figures(check: Check) -> str:
    return (
        f"value {number_text(check.value)}, 95% interval {interval_text(check)}, {check.n} items, margin "
        f"{number_text(check.margin, signed=True)}"
    )


def markdown_text(result: GateResult) -> str:
    """A section of a model card: the rules with their values, intervals and margins, and the reasons of failures."""
    state = "passes" if result.passed else "does not pass"
    head = ("measure", "rule", "value", "95% interval", "items", "margin", "verdict")
    rows = [
        (
            f"`{check.measure}`",
            check.rule,
            number_text(check.value),
            interval_text(check),
            str(check.n),
            number_text(check.margin, signed=True),
            check.verdict,
        )
        for check in result.checks
    ]
    lines = ["## Release gate", "", f"The model {state} its release policy.", ""]
    lines += ["; ".join(f"{name}: {markdown_cell(value)}" for name, value in _about(result)) + ".", ""]
    lines += [f"| {' | '.join(map(markdown_cell, row))} |" for row in (head, ("---",) * len(head), *rows)]
    reasons = [
        f"- `{markdown_cell(check.measure)}`: {markdown_cell(check.why)}."
        for check in result.checks
        if not check.passed
    ]
    if reasons:
        lines += ["", "Rules that are not met:", "", *reasons]
    lines += [
        "",
        "A rule is met if the end of the 95% interval that is against the release meets the limit; the margin is its distance "
        "to the limit. *Not resolved* means that the sample shows neither a pass nor a failure.",
    ]
    return "\n".join(lines) + "\n"
