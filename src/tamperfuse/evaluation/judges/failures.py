"""Responses on which a judge could not decide: they are counted and shown, and too many of them stop it."""

from collections.abc import Sequence

from tamperfuse.evaluation.judges.base import Verdict
from tamperfuse.records.errors import UserError

UNPARSED = "unparsed"  # the judge's reply has another form than the one that it was told to use
REJECTED = "rejected"  # the endpoint would not answer, or the response does not fit into the judge's window
FAILURES = (UNPARSED, REJECTED)


def failed(kind: str, reply: str) -> Verdict:
    """What stands for a verdict on a response on which the judge could not decide; measures do not count it as one.

    Args:
        kind: one of :data:`FAILURES`.
        reply: what the judge answered.
    """
    return Verdict(False, reason=kind, evidence={"failure": kind, "reply": reply[:300]})


def is_failure(verdict: Verdict) -> bool:
    """Whether it is a verdict of :func:`failed`."""
    return verdict.evidence.get("failure") in FAILURES


def check_failures(judge: str, failures: Sequence[Verdict], total: int, tolerated: float, advice: str) -> str:
    """Count the responses without a decision.

    Args:
        judge: name of the judge.
        failures: verdicts of :func:`failed`.
        total: number of responses to judge.
        tolerated: largest share of them that may lack a decision. One always may, if there are others.
        advice: how to mend it.

    Returns:
        A sentence with the numbers; "" if every response has a decision.

    Raises:
        UserError: there are more.
    """
    if not failures:
        return ""
    counts = {kind: sum(verdict.reason == kind for verdict in failures) for kind in FAILURES}
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    if len(failures) > max(1.0, tolerated * total) or len(failures) == total:
        example = " ".join(str(failures[0].evidence["reply"]).split())[:80]
        raise UserError(
            f"The judge {judge} could not decide on {len(failures)} of {total} responses ({kinds}), the first time with the "
            f"reply {example!r}: {advice}."
        )
    return (
        f"The judge {judge} could not decide on {len(failures)} of {total} responses ({kinds}): rates leave them out, and "
        "intervals hold however they would have been decided."
    )
