"""Numbers, names and untrusted text as the report prints them."""

from tamperfuse.records.errors import printable
from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.summary import Measure

NOT_RESOLVED = "not resolved"
MISSING = "\N{EN DASH}"
DIVERGED = "diverged"  # in place of what was not measured, since the attack made the model NaN
MINUS = "\N{MINUS SIGN}"

_LABELS = {UNDEFENDED: "undefended", "sdd": "SDD", "sdd_reject": "SDD with refusal"}


def label(defense: str) -> str:
    """A defense's name as the report prints it; by default the study's."""
    return _LABELS.get(defense, defense)


def is_resolved(measure: Measure) -> bool:
    """Whether a difference may be stated: it is marked as resolved, and its interval excludes zero.

    Both are required, so that a missing flag or a missing interval never leads to a claim.
    """
    if not measure.resolved or measure.value is None or measure.low is None or measure.high is None:
        return False
    return measure.low > 0 or measure.high < 0


def markdown_cell(text: str) -> str:
    """Text on one line of a Markdown table, without markup of HTML."""
    return " ".join(printable(text).split()).replace("|", "\\|").replace("<", "&lt;")


def percent(value: float, digits: int = 1) -> str:
    """0.931 as "93.1%"; whole numbers without decimals; with the minus sign character."""
    text = f"{abs(100 * value):.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{MINUS if value < 0 and text != '0' else ''}{text}%"


def rough(share: float) -> str:
    """A share in whole percent for a sentence; only exact 0 and 1 are printed as 0% and 100%."""
    if 0 < share < 0.005:
        return "under 1%"
    if 0.995 <= share < 1:
        return "over 99%"
    return percent(share, 0)


def span(measure: Measure, digits: int = 1) -> str:
    """The interval of a share: "1% to 4.5%"; "" where there is none."""
    if measure.low is None or measure.high is None:
        return ""
    return f"{percent(measure.low, digits)} to {percent(measure.high, digits)}"


def negated(measure: Measure) -> Measure:
    """A difference with the other sign."""
    low, high = (None if end is None else -end for end in (measure.high, measure.low))
    value = None if measure.value is None else -measure.value
    return Measure(value=value, low=low, high=high, n=measure.n, resolved=measure.resolved)


def span_beside(measure: Measure, limit: float) -> str:
    """The interval of a share, with as many digits as it takes to see on which side of a limit its ends lie."""
    ends = [end for end in (measure.low, measure.high) if end is not None and end != limit]
    hidden = (digits for digits in range(3) if all(percent(end, digits) != percent(limit, digits) for end in ends))
    return span(measure, next(hidden, 3))


def times(ratio: float) -> str:
    """A ratio of steps: "2", "1.5", "0.042"."""
    return f"{ratio:.1f}".removesuffix(".0") if ratio >= 1 else f"{ratio:.2g}"
