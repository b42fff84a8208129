"""Defenses, one file each. Importing this package registers the built-in ones."""

from tamperfuse.defenses import refusal, sdd
from tamperfuse.defenses.base import DEFENSES, DefenseData, DefenseResult

__all__ = ["DEFENSES", "DefenseData", "DefenseResult", "refusal", "sdd"]
