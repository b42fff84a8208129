"""Defenses, one file each. Importing this package registers the built-in ones."""

from tamperfuse.defenses import fuse, lox, refusal, sdd
from tamperfuse.defenses.base import DEFENSES, DefenseData, DefenseResult

__all__ = ["DEFENSES", "DefenseData", "DefenseResult", "fuse", "lox", "refusal", "sdd"]
