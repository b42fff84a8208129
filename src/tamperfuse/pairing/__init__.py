"""SDD pairs: harmful prompts, each with a high-quality response that does not answer it (SDD paper, section 4.1).

    prompts, sorted by hash(seed, text)      responses, sorted by hash(seed, text): the pool

    p0 ──────────────────────────────────▶  r0   cosine  .03   paired
    p1 ──────────────────────────────────▶  r1   cosine  .41   too similar: draw again
     └── stride(p1) = 3 positions on ─────▶  r4   cosine  .08   paired
    p2 ──────────────────────────────────▶  r2   cosine -.05   paired
    p3 ──────────────────────────────────▶  r3   cosine  .30   too similar
     └── stride(p3) = 1 ──────────────────▶  r4   cosine  .27   too similar
          … at most max_draws times, never the same response twice; then p3 is dropped and counted

Positions in the pool follow from hashes of the texts, so the order of the files changes nothing. First draws are all
different while the pool lasts, and a prompt's stride meets every response once. Only responses that are drawn are encoded:
with 8,000 prompts and 52,000 responses that is about one response in six.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tamperfuse.corpora.examples import Pair
    from tamperfuse.pairing.filters import DEFAULT_FILTERS, FilterSettings
    from tamperfuse.pairing.pairs import PairSet, combined, make_pairs, sample_responses
    from tamperfuse.pairing.store import read_pairs, write_pairs

# By name, the module that is imported on first use: the command line imports this package for its options only.
_MODULES = {
    "DEFAULT_FILTERS": "pairing.filters",
    "FilterSettings": "pairing.filters",
    "Pair": "corpora.examples",
    "PairSet": "pairing.pairs",
    "combined": "pairing.pairs",
    "make_pairs": "pairing.pairs",
    "read_pairs": "pairing.store",
    "sample_responses": "pairing.pairs",
    "write_pairs": "pairing.store",
}

__all__ = [
    "DEFAULT_FILTERS",
    "FilterSettings",
    "Pair",
    "PairSet",
    "combined",
    "make_pairs",
    "read_pairs",
    "sample_responses",
    "write_pairs",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"tamperfuse.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'tamperfuse.pairing' has no attribute {name!r}")
