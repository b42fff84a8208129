"""Prompts before they are paired: normalised, without duplicates and evaluation prompts, balanced over categories."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tamperfuse.corpora.examples import Example, join_labels, labels
from tamperfuse.corpora.overlap import near, plain
from tamperfuse.corpora.texts import normalise
from tamperfuse.models.encoder import TextEncoder
from tamperfuse.pairing.sampling import text_key
from tamperfuse.records.progress import progress

LONGEST_PROMPT = 8000  # characters


@dataclass
class PromptReport:
    """Counts of the prompts that were read.

    Attributes:
        read: rows with a prompt.
        empty: rows without.
        too_long: prompts above 8,000 characters.
        duplicates: prompts equal to an earlier one but for case, punctuation and white space.
        multi_label: prompts with several categories; such a prompt counts under the one that had fewest.
        contaminated: prompts left out, as (prompt, evaluation prompt, reason: "exact", "13-gram" or "cosine 0.93").
        shares: prompts of every category that are used.
        equal_share: share of a category if all were equal; None if all prompts are used.
        short: by how many prompts a category missed that share; the others fill it.
    """

    read: int = 0
    empty: int = 0
    too_long: int = 0
    duplicates: int = 0
    multi_label: int = 0
    contaminated: list[tuple[str, str, str]] = field(default_factory=list)
    shares: dict[str, int] = field(default_factory=dict)
    equal_share: int | None = None
    short: dict[str, int] = field(default_factory=dict)


def clean_prompts(examples: Iterable[Example], report: PromptReport) -> list[Example]:
    """Normalise prompts, drop those that are empty or too long, and merge duplicates.

    Prompts that differ in case, punctuation or white space only are one prompt: the text that sorts first, under the labels of
    all. (In BeaverTails a prompt has several rows, judged with different answers.) The order of rows changes nothing.
    """
    chosen: dict[int, Example] = {}
    with progress("reading prompts", None) as advance:
        for example in examples:
            advance(1)
            prompt = normalise(example.prompt)
            report.read += bool(prompt)
            report.empty += not prompt
            if len(prompt) > LONGEST_PROMPT:
                report.too_long += 1
            elif prompt:
                key = text_key(plain(prompt), "duplicate", 0)
                new = Example(prompt, "", example.category, example.origin)
                report.duplicates += key in chosen
                chosen[key] = _merged(chosen[key], new) if key in chosen else new
    return list(chosen.values())


def _merged(one: Example, other: Example) -> Example:
    """One prompt from two with the same words: the text that sorts first, under the labels of both."""
    first = min(one, other, key=lambda example: (example.prompt, example.origin))
    if one.category == other.category:
        return first
    return replace(first, category=join_labels({*labels(one.category), *labels(other.category)}))


class EvaluationPrompts:
    """The prompts of the evaluation sets, which must not be among the pairs."""

    def __init__(self, evaluation: Sequence[str], encoder: TextEncoder) -> None:
        """Set up.

        Args:
            evaluation: the evaluation prompts; may be empty.
            encoder: finds paraphrases of them.
        """
        self._evaluation, self._encoder = evaluation, encoder

    def exclude_from(self, prompts: Sequence[Example], report: PromptReport) -> list[Example]:
        """The prompts without evaluation prompts: the same words, a shared 13-gram, or a cosine of at least 0.9.

        Args:
            prompts: cleaned prompts.
            report: takes the list of what was left out.
        """
        contaminated = near([prompt.prompt for prompt in prompts], self._evaluation, self._encoder)
        report.contaminated += [(prompts[index].prompt, *reason) for index, reason in contaminated.items()]
        return [prompt for index, prompt in enumerate(prompts) if index not in contaminated]


def balance(prompts: Sequence[Example], count: int | None, seed: int, report: PromptReport) -> list[Example]:
    """Give every prompt one category, and select `count` of them in equal shares (SDD paper, section 4.1).

    A multi-label prompt goes to the one of its categories that has fewest so far. All prompts of a category that has too few
    are selected; the others fill the rest evenly.

    Args:
        prompts: cleaned prompts, in any order.
        count: number of prompts to select; all if None.
        seed: decides which ones are selected where a category has too many.
        report: takes shares and shortfalls.
    """
    ordered = sorted(prompts, key=lambda prompt: text_key(prompt.prompt, "prompt", seed))
    groups: dict[str, list[Example]] = defaultdict(list)
    single = Counter(prompt.category for prompt in ordered if len(labels(prompt.category)) < 2)
    for prompt in ordered:
        names = labels(prompt.category)
        category = prompt.category
        if len(names) > 1:
            report.multi_label += 1
            category = min(names, key=lambda name: (single[name], name))
            single[category] += 1
        groups[category].append(replace(prompt, category=category))
    sizes = {name: len(group) for name, group in groups.items()}
    shares = sizes if count is None else equal_shares(sizes, count)
    if count is not None and groups:
        report.equal_share = count // len(groups)
        report.short = {
            name: report.equal_share - size for name, size in sorted(sizes.items()) if size < report.equal_share
        }
    report.shares = {name: shares[name] for name in sorted(shares)}
    return [prompt for name in sorted(groups) for prompt in groups[name][: shares[name]]]


def equal_shares(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Shares of `count` as equal as the sizes allow; their sum is `count`, or the sum of the sizes if that is less."""
    order = sorted(sizes, key=lambda name: (sizes[name], name))
    left, shares = min(count, sum(sizes.values())), {}
    for at, name in enumerate(order):  # smallest first: what it lacks is spread over the rest
        shares[name] = min(sizes[name], left // (len(order) - at))
        left -= shares[name]
    return shares
