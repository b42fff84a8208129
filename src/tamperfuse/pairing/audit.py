"""The audit of a run: counts, filters with examples, balance, similarity, lengths, sources. Written as JSON, page and card."""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamperfuse.corpora.examples import Pair
from tamperfuse.pairing.audit_page import write_page
from tamperfuse.pairing.card import write_card
from tamperfuse.pairing.filters import ResponseFilters
from tamperfuse.pairing.lengths import LengthCounter, quantiles
from tamperfuse.pairing.options import PairOptions
from tamperfuse.pairing.pairs import Block, dropped_prompts
from tamperfuse.pairing.prompts import PromptReport
from tamperfuse.pairing.response_pool import DiskPool
from tamperfuse.pairing.sampling import text_key
from tamperfuse.pairing.source_records import sources_of
from tamperfuse.pairing.store import SUMMARY, TABLE
from tamperfuse.records.files import sha256_of, write_json
from tamperfuse.records.provenance import versions

MOST_SIMILAR = 20
LISTED = 50  # dropped prompts that are listed
_LENGTH_SAMPLE = 2000  # pairs whose lengths are measured
BINS = np.round(np.arange(-0.5, 1.0001, 0.05), 2)


class Audit:
    """Collects statistics while the pairs are written, then writes them.

    Attributes:
        filters: the run's filters, None if it had none.
        pairs: pairs so far, replay included.
        sdd_pairs: SDD pairs so far.
        dropped: prompts so far for which no irrelevant response was found.
    """

    def __init__(
        self,
        options: PairOptions,
        prompts: PromptReport,
        filters: ResponseFilters | None,
        pool: DiskPool,
        length: LengthCounter,
        exchanges: PromptReport | None = None,
    ) -> None:
        """Set up.

        Args:
            options: of the run.
            prompts: counts of the prompts that were read.
            filters: of the run.
            pool: the responses.
            length: measures texts.
            exchanges: counts of the benign exchanges, filled while they are read.
        """
        self._length, self._exchanges = length, exchanges or PromptReport()
        self._options, self._prompts, self.filters, self._pool = options, prompts, filters, pool
        self.pairs = self.sdd_pairs = self.dropped = 0
        self._dropped_prompts: list[str] = []
        self._redraws = self._replay = self._multi_turn = 0
        self._encoded = np.zeros(len(pool), dtype=np.bool_)
        self._before, self._after = np.zeros(len(BINS) - 1, np.int64), np.zeros(len(BINS) - 1, np.int64)
        self._sum, self._highest = 0.0, -1.0
        self._categories: Counter[str] = Counter()
        self._uses: Counter[str] = Counter()
        self._most_similar: list[tuple[float, str, Pair]] = []
        self._length_sample: list[tuple[int, Pair]] = []

    def add_block(self, block: Block, pairs: Sequence[Pair]) -> None:
        """Count a block.

        Args:
            block: as it was matched.
            pairs: its pairs as they are written, with refusal prefixes and earlier turns.
        """
        dropped = dropped_prompts(block)
        self.dropped += len(dropped)
        self._dropped_prompts += dropped[: LISTED - len(self._dropped_prompts)]
        matches = block.matches
        self._redraws += matches.redraws
        self._encoded[matches.encoded] = True
        self._before += _histogram(matches.first_similarity[~np.isnan(matches.first_similarity)])
        cosine = matches.similarity[~np.isnan(matches.similarity)]
        self._after += _histogram(cosine)
        self._sum += float(cosine.sum())
        self._highest = max([self._highest, *cosine.tolist()])
        self.sdd_pairs += len(pairs)
        self.pairs += len(pairs)
        keyed = [(text_key(pair.prompt, "length", 0), pair) for pair in pairs]  # a fair sample, whatever the order
        self._length_sample = heapq.nsmallest(_LENGTH_SAMPLE, self._length_sample + keyed, key=lambda item: item[0])
        for pair in pairs:
            self._categories[pair.category] += 1
            self._uses[pair.response_origin] += 1
            self._multi_turn += bool(pair.history)
        ranked = [(pair.similarity, pair.prompt, pair) for pair in pairs]
        self._most_similar = heapq.nlargest(MOST_SIMILAR, self._most_similar + ranked, key=lambda item: item[:2])

    def add_replay(self, pairs: Sequence[Pair]) -> None:
        """Count pairs of benign replay."""
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
            "sdd_pairs": self.sdd_pairs,
            "replay_pairs": self._replay,
            "multi_turn_pairs": self._multi_turn,
            "dropped": self.dropped,
            "redraws": self._redraws,
            "encoded_prompts": self.sdd_pairs + self.dropped,
            "encoded_responses": int(self._encoded.sum()),
            "responses_used": len(self._uses),
            "most_uses_of_a_response": max(self._uses.values(), default=0),
            "threshold": self._options.threshold,
            "seed": self._options.seed,
            "encoder": self._options.encoder,
            "dtype": self._options.dtype,
            "match": self._options.match,
            "similarity": {"mean": self._sum / max(1, self.sdd_pairs), "highest": self._highest},
        }

    def _details(self) -> dict[str, Any]:
        options, filters = self._options, self.filters
        report = asdict(self._prompts)
        contaminated = report.pop("contaminated")
        listed = [("prompt", contaminated), ("benign exchange", dict.fromkeys(self._exchanges.contaminated))]
        return {
            "prompts": report | {"contaminated": len(contaminated)},
            "contaminated": [
                {"prompt": prompt, "evaluation_prompt": other, "how": how, "of": kind}
                for kind, rows in listed
                for prompt, other, how in rows
            ],
            "responses": {
                "read": self._pool.read,
                "empty": self._pool.empty,
                "duplicates": self._pool.duplicates,
                "pool": len(self._pool),
                "drawn_and_judged": filters.judged if filters else 0,
            },
            "filters": [
                {"name": name, "refused": filters.refused[name], "examples": filters.examples.get(name, [])}
                for name in filters.names
            ]
            if filters
            else [],
            "categories": {name or "(none)": count for name, count in sorted(self._categories.items())},
            "histogram": {"edges": BINS.tolist(), "before": self._before.tolist(), "after": self._after.tolist()},
            "most_similar": [asdict(pair) for _, _, pair in self._most_similar],
            "dropped_prompts": self._dropped_prompts,
            "lengths": quantiles([pair for _, pair in self._length_sample], self._length),
            "sources": [asdict(record) for record in sources_of(options)],
            "options": {name: _json_value(value) for name, value in asdict(options).items() if name != "out"},
            "versions": versions(),
        }

    def _paragraph(self, counts: dict[str, Any]) -> str:
        refused = sum(self.filters.refused.values()) if self.filters else 0
        replay = f", {self._replay} of them benign replay" if self._replay else ""
        return (
            f"{self.pairs:,} pairs{replay}. Read: {self._prompts.read:,} prompts and {self._pool.read:,} responses. "
            f"Redraws: {self._redraws:,}. Responses encoded: {counts['encoded_responses']:,} of {len(self._pool):,}; refused by "
            f"filters: {refused:,}. Prompts dropped: {self.dropped:,}. Highest similarity: "
            f"{counts['similarity']['highest']:.3f} (threshold {self._options.threshold:g}). "
            "Read audit.html before you train on the pairs."
        )


def _histogram(cosine: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts by bin; values beyond the first or last edge count in the first or last bin."""
    return np.histogram(np.clip(cosine, BINS[0], BINS[-1]), BINS)[0]


def _json_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
