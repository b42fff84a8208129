"""Judges: one file each. Importing the package registers them."""

from tamperfuse.evaluation.judges import builtin, classifier, guard, llm, phrases
from tamperfuse.evaluation.judges.base import JUDGES, Answer, JudgeData, Verdict, judge

__all__ = ["JUDGES", "Answer", "JudgeData", "Verdict", "builtin", "classifier", "guard", "judge", "llm", "phrases"]
