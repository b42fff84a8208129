"""The files of a finished run, apart from its plan."""

from pathlib import Path

from tamperfuse.records.files import NODES
from tamperfuse.records.results import RESULTS
from tamperfuse.records.run import FIGURES, PAGE, RUN, SAMPLES, STUDY
from tamperfuse.records.searches import SEARCHES
from tamperfuse.records.summary import SUMMARY

#: The summary first: without it there is no finished run.
RESULT_FILES = (SUMMARY, STUDY, RESULTS, SAMPLES, RUN, SEARCHES, PAGE, FIGURES)


def inputs_of(run: Path) -> list[Path]:
    """The files and folders of a run that a command which reads it must not replace."""
    return [run / name for name in (*RESULT_FILES, NODES)]
