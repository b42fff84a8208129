"""Judges: responses → verdicts, one file each."""
