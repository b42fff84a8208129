"""Defenses: model → hardened model, one file each. Importing this package registers the built-in ones."""

from tamperfuse.defenses import refusal, sdd
from tamperfuse.defenses.base import DEFENSES, Defended, DefenseData

__all__ = ["DEFENSES", "Defended", "DefenseData", "refusal", "sdd"]
