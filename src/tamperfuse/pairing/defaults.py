"""Defaults that the command line shows. This module imports nothing, so that `--help` is fast."""

DEFAULT_THRESHOLD = 0.25  # highest cosine of a pair, as in the public re-implementation
DEFAULT_MAX_DRAWS = 50  # as in the public re-implementation
NEAR_DUPLICATES = 0.8  # Jaccard similarity of word 5-grams from which two responses count as duplicates
LANGUAGE = "en"  # of the responses
