"""The files of a finished run, apart from its nodes and its plan."""

from tamperfuse.records.results import RESULTS
from tamperfuse.records.run import FIGURES, PAGE, RUN, SAMPLES, STUDY
from tamperfuse.records.searches import SEARCHES
from tamperfuse.records.summary import SUMMARY

#: The folder of the results of single nodes.
NODES = "nodes"
#: The summary first: without it there is no finished run.
RESULT_FILES = (SUMMARY, STUDY, RESULTS, SAMPLES, RUN, SEARCHES, PAGE, FIGURES)
