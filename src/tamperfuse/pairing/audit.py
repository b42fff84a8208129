"""The account of a run: counts, filters with examples, balance, similarity, lengths, sources. As JSON, page and card."""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamperfuse.corpora.examples import Example, Pair
from tamperfuse.pairing.card import write_card
from tamperfuse.pairing.draw import text_key
from tamperfuse.pairing.filters import ResponseFilters
from tamperfuse.pairing.lengths import LengthCounter, quantiles
from tamperfuse.pairing.match import Matches
from tamperfuse.pairing.options import PairOptions
from tamperfuse.pairing.page import write_page
from tamperfuse.pairing.prompts import PromptReport
from tamperfuse.pairing.provenance import sources_of
from tamperfuse.pairing.spool import ResponseSpool
from tamperfuse.pairing.store import SUMMARY, TABLE
from tamperfuse.records.files import sha256_of, write_json
from tamperfuse.records.provenance import versions

MOST_SIMILAR = 20
LISTED = 50  # dropped and contaminated prompts that are listed
_MEASURED = 2000  # pairs whose lengths are measured
BINS = np.round(np.arange(-0.5, 1.0001, 0.05), 2)


class Audit:
    """Collects while the pairs stream past, then writes.

    Attributes:
        filters: the run's filters, None if it had none.
        pairs: pairs so far, replay included.
        kept: SDD pairs so far.
        dropped: prompts that found no irrelevant response.
    """

    def __init__(
        self,
        options: PairOptions,
        prompts: PromptReport,
        filters: ResponseFilters | None,
        spool: ResponseSpool,
        length: LengthCounter,
        exchanges: PromptReport | None = None,
    ) -> None:
        """Take what was found out before the matching, what measures a text's length, and what becomes of exchanges."""
        self._length, self._exchanges = length, exchanges or PromptReport()
        self._options, self._prompts, self.filters, self._spool = options, prompts, filters, spool
        self.pairs = self.kept = self.dropped = 0
        self._lost: list[str] = []
        self._redraws = self._replay = self._multi_turn = 0
        self._encoded = np.zeros(len(spool), dtype=np.bool_)
        self._before, self._after = np.zeros(len(BINS) - 1, np.int64), np.zeros(len(BINS) - 1, np.int64)
        self._sum, self._highest = 0.0, -1.0
        self._categories: Counter[str] = Counter()
        self._uses: Counter[str] = Counter()
        self._top: list[tuple[float, str, Pair]] = []
        self._sample: list[tuple[int, Pair]] = []

    def take(self, prompts: Sequence[Example], found: Matches, pairs: Sequence[Pair]) -> None:
        """Account for a block."""
        lost = [ask.prompt for ask, got in zip(prompts, found.responses, strict=True) if got is None]
        self.dropped += len(lost)
        self._lost += lost[: LISTED - len(self._lost)]
        self._redraws += found.redraws
        self._encoded[found.encoded] = True
        self._before += _histogram(found.first[~np.isnan(found.first)])
        cosine = found.similarity[~np.isnan(found.similarity)]
        self._after += _histogram(cosine)
        self._sum += float(cosine.sum())
        self._highest = max([self._highest, *cosine.tolist()])
        self.kept += len(pairs)
        self.pairs += len(pairs)
        keyed = [(text_key(pair.prompt, "length", 0), pair) for pair in pairs]  # fair, however the prompts are sorted
        self._sample = heapq.nsmallest(_MEASURED, self._sample + keyed, key=lambda item: item[0])
        for pair in pairs:
            self._categories[pair.category] += 1
            self._uses[pair.response_origin] += 1
            self._multi_turn += bool(pair.history)
        ranked = [(pair.similarity, pair.prompt, pair) for pair in pairs]
        self._top = heapq.nlargest(MOST_SIMILAR, self._top + ranked, key=lambda item: item[:2])

    def take_replay(self, pairs: Sequence[Pair]) -> None:
        """Account for benign replay."""
        self._replay += len(pairs)
        self.pairs += len(pairs)

    def write(self, folder: Path) -> str:
        """Write `pairs.json`, `audit.json`, `audit.html` and `README.md`; returns a paragraph for the terminal."""
        counts = self._counts()
        write_json(folder / SUMMARY, {"schema": 1, **counts, "sha256": sha256_of(folder / TABLE)})
        facts = {**counts, **self._details(), "sha256": sha256_of(folder / TABLE)}
        write_json(folder / "audit.json", facts)
        write_page(folder / "audit.html", facts)
        write_card(folder / "README.md", facts)
        return self._paragraph(counts)

    def _counts(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "sdd_pairs": self.kept,
            "replay_pairs": self._replay,
            "multi_turn_pairs": self._multi_turn,
            "dropped": self.dropped,
            "redraws": self._redraws,
            "encoded_prompts": self.kept + self.dropped,
            "encoded_responses": int(self._encoded.sum()),
            "responses_used": len(self._uses),
            "most_uses_of_a_response": max(self._uses.values(), default=0),
            "threshold": self._options.threshold,
            "seed": self._options.seed,
            "encoder": self._options.encoder,
            "dtype": self._options.dtype,
            "match": self._options.match,
            "similarity": {"mean": self._sum / max(1, self.kept), "highest": self._highest},
        }

    def _details(self) -> dict[str, Any]:
        options, filters = self._options, self.filters
        report = asdict(self._prompts)
        contaminated = report.pop("contaminated")
        listed = [("prompt", contaminated), ("benign exchange", dict.fromkeys(self._exchanges.contaminated))]
        return {
            "prompts": report | {"contaminated": len(contaminated)},
            "contaminated": [
                {"prompt": prompt, "evaluation_prompt": other, "how": how, "of": of}
                for of, found in listed
                for prompt, other, how in found
            ],
            "responses": {
                "read": self._spool.read,
                "empty": self._spool.empty,
                "duplicates": self._spool.duplicates,
                "pool": len(self._spool),
                "drawn_and_judged": filters.judged if filters else 0,
            },
            "filters": [
                {"name": name, "took": filters.taken[name], "examples": filters.examples.get(name, [])}
                for name in (*filters.rules, *(["low quality"] if options.score_quality else []))
            ]
            if filters
            else [],
            "categories": {name or "(none)": count for name, count in sorted(self._categories.items())},
            "histogram": {"edges": BINS.tolist(), "before": self._before.tolist(), "after": self._after.tolist()},
            "most_similar": [asdict(pair) for _, _, pair in self._top],
            "dropped_prompts": self._lost,
            "lengths": quantiles([pair for _, pair in self._sample], self._length),
            "sources": [asdict(record) for record in sources_of(options)],
            "options": {name: _plain(value) for name, value in asdict(options).items() if name != "out"},
            "versions": versions(),
        }

    def _paragraph(self, counts: dict[str, Any]) -> str:
        refused = sum(self.filters.taken.values()) if self.filters else 0
        encoded = counts["encoded_responses"]
        extra = f", {self._replay} of them benign replay" if self._replay else ""
        return (
            f"{self.pairs:,} pairs{extra}: {self._prompts.read:,} prompts and {self._spool.read:,} responses came in, "
            f"{self._redraws:,} draws were repeated, {encoded:,} of {len(self._spool):,} responses encoded, {refused:,} "
            f"refused by filters, {self.dropped:,} prompts dropped; the highest similarity is "
            f"{counts['similarity']['highest']:.3f} (threshold {self._options.threshold:g}). "
            "Read audit.html before you train on them."
        )


def _histogram(cosine: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts by bin; what lies beyond the last edges, by a rounding error or more, counts in the last bins."""
    return np.histogram(np.clip(cosine, BINS[0], BINS[-1]), BINS)[0]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
