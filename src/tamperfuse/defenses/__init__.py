"""Defenses, one file each. Importing this package registers the built-in ones."""

from tamperfuse.defenses import booster, ctrap, fuse, lox, refusal, repnoise, sdd, seam, tar
from tamperfuse.defenses.base import DEFENSES, DefenseData, DefenseResult

__all__ = [
    "DEFENSES",
    "DefenseData",
    "DefenseResult",
    "booster",
    "ctrap",
    "fuse",
    "lox",
    "refusal",
    "repnoise",
    "sdd",
    "seam",
    "tar",
]
