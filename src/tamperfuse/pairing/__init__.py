"""SDD pairs: harmful prompts, each with a high-quality response that does not answer it (SDD paper, section 4.1).

    prompts, sorted by hash(seed, text)      responses, sorted by hash(seed, text): the deck

    p0 ──────────────────────────────────▶  r0   cosine  .03   kept
    p1 ──────────────────────────────────▶  r1   cosine  .41   too close: draw again
     └── stride(p1) = 3 cards further ────▶  r4   cosine  .08   kept
    p2 ──────────────────────────────────▶  r2   cosine -.05   kept
    p3 ──────────────────────────────────▶  r3   cosine  .30   too close
     └── stride(p3) = 1 ──────────────────▶  r4   cosine  .27   too close
          … max_draws times, never the same card twice, then p3 is dropped and counted

Places in the deck follow from hashes of the texts, so the order of the files changes nothing; first draws are all
different while the deck lasts; a prompt walks the deck in steps that meet every card once. Only cards that are drawn are
ever encoded: with 8,000 prompts and 52,000 responses that is about one response in six.
"""

from tamperfuse.corpora.examples import Pair
from tamperfuse.pairing.filters import DEFAULT_FILTERS, FilterSettings
from tamperfuse.pairing.pairs import PairSet, make_pairs
from tamperfuse.pairing.store import read_pairs, write_pairs

__all__ = ["DEFAULT_FILTERS", "FilterSettings", "Pair", "PairSet", "make_pairs", "read_pairs", "write_pairs"]
