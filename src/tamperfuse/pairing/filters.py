"""Quality filters for responses, applied to those that are drawn; every text is judged once."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.texts import ngrams, words
from tamperfuse.pairing import defaults
from tamperfuse.pairing.defaults import NEAR_DUPLICATES
from tamperfuse.pairing.sampling import text_key
from tamperfuse.records.errors import UserError
from tamperfuse.records.progress import progress

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

Rule = Callable[[str], bool]
SHORTEST, LONGEST = 40, 8000  # characters of a response
MOST_REPEATED = 0.3  # share of word 4-grams that repeat an earlier one
EXAMPLES = 3  # refused texts in the audit for a filter
_OTHER_LANGUAGE = 0.9  # probability from which a text counts as being in another language

_REFUSAL = re.compile(
    r"^\W*(?:sorry\b|unfortunately,? (?:i|we)\b)|"
    r"\b(?:i(?:'m| am) (?:very |so |really )?(?:sorry|afraid|unable|not able|not comfortable)|"
    r"i (?:can(?:'t|not| not)|won't|will not|must (?:decline|refuse)|refuse|decline)|"
    r"i apologi[sz]e|my apologies|i (?:do not|don't) feel comfortable)\b",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"as an? (?:ai|artificial intelligence|(?:large )?language model)|i(?:'m| am) (?:just |only )?an? (?:ai|language model)|"
    r"my (?:knowledge cutoff|training data)|i (?:do not|don't) have (?:personal|real-time|access)|"
    r"(?:chatgpt|openai|open assistant)\b|i hope this helps|is there anything else",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"</?(?:div|span|p|br|a|img|table|tr|td|ul|li|script|style|font)\b[^>]*>|&(?:nbsp|amp|lt|gt|quot|#\d+);|"
    r"<\|[a-z_]+\|>|\[/?INST\]|<noinput>|\[(?:edit|citation needed)\]|\{\{[^}]*\}\}|\ufffd",
    re.IGNORECASE,
)
_PERSONAL = re.compile(
    r"[\w.+-]+@[\w-]+\.[A-Za-z]{2,}|"  # e-mail
    r"(?<![\d.])(?:\+?\d{1,3}[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}\b|"  # telephone, as in North America
    r"(?<![\w+])\+\d(?:[ .()-]{0,2}\d){7,14}(?!\d)|"  # and anywhere, with its country's code
    r"\b\d{3}-\d{2}-\d{4}\b|"  # social security number
    r"\b(?:\d{4}[ -]?){3}\d{4}\b|"  # payment card
    r"\b[A-Z]{2}\d{2}(?: ?[A-Z\d]{4}){3,7}\b|"  # IBAN
    r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?!\.?\d)"  # IP address
)
_TOXIC = frozenset(
    [
        "fuck",
        "fucking",
        "fucked",
        "fucker",
        "motherfucker",
        "shit",
        "shitty",
        "bullshit",
        "bitch",
        "bastard",
        "asshole",
        "cunt",
        "whore",
        "slut",
        "retard",
        "retarded",
        "wanker",
        "dickhead",
    ]
)
_SENTENCE_END = re.compile(r"[.!?…。！？؟।:;)\]}\"'”’»*`|>\d]\s*$|```\s*$")


def _refuses(text: str) -> bool:
    return bool(_REFUSAL.search(_straight(text[:200])))


def _straight(text: str) -> str:
    """Replace typographic apostrophes: "can’t" becomes "can't"."""
    return text.replace("’", "'")


def _truncated(text: str) -> bool:
    """Whether a text ends in the middle of a sentence; lists, code and verse may end without a full stop."""
    last = text.rsplit("\n", 1)[-1]
    return len(last.split()) > 8 and not _SENTENCE_END.search(last)


def _repeats(text: str) -> bool:
    text_words = words(text)
    grams = [tuple(text_words[start : start + 4]) for start in range(len(text_words) - 3)]
    return bool(grams) and 1 - len(set(grams)) / len(grams) > MOST_REPEATED


def check_language(language: str) -> None:
    """Check that a language can be detected.

    Raises:
        UserError: it cannot.
    """
    if language in ("any", DEFAULT_FILTERS.language):  # loads no model
        return
    languages = sorted(set(_identifier().nb_classes))
    if language not in languages:
        raise UserError(
            f"{language!r} cannot be detected: set --language of `tamperfuse pair`, or `pairs.language` in a study, to one "
            f"of {', '.join(languages)}, or any."
        )


def _other_language(language: str) -> Rule:
    check_language(language)

    def rule(text: str) -> bool:
        guess, probability = _identifier().classify(text[:1000])
        return bool(guess != language and probability > _OTHER_LANGUAGE)

    return rule


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


# Applied in this order; a refusal counts for the first rule that refuses. docs/pairing.md describes them.
RULES: dict[str, Rule] = {
    "too short": lambda text: len(text) < SHORTEST,
    "too long": lambda text: len(text) > LONGEST,
    "refusal or apology": _refuses,
    "boilerplate": lambda text: bool(_BOILERPLATE.search(_straight(text))),
    "markup debris": lambda text: bool(_MARKUP.search(text)),
    "personal data": lambda text: bool(_PERSONAL.search(text)),
    "toxic words": lambda text: not _TOXIC.isdisjoint(words(text)),
    "truncated": _truncated,
    "repetition": _repeats,
}


class NearDuplicates:
    """Finds texts that share most of their word 5-grams with an accepted one (MinHash and LSH, datasketch)."""

    def __init__(self, similarity: float) -> None:
        """Set the Jaccard similarity from which two texts count as duplicates, in (0, 1)."""
        from datasketch import MinHash, MinHashLSH

        self._similarity = similarity
        # The weights favour recall: the index proposes candidates, and the MinHash estimates below decide.
        self._index = MinHashLSH(threshold=similarity, num_perm=128, weights=(0.1, 0.9))
        self._sketches: list[MinHash] = []

    def is_duplicate(self, text: str) -> bool:
        """Whether a near-duplicate was accepted before; if not, the text is accepted."""
        import numpy as np
        from datasketch import MinHash

        sketch = MinHash(num_perm=128, hashfunc=int)
        sketch.update_batch((ngrams(text, 5) & np.uint64(0xFFFFFFFF)).tolist())
        if any(sketch.jaccard(self._sketches[number]) >= self._similarity for number in self._index.query(sketch)):
            return True
        self._index.insert(len(self._sketches), sketch, check_duplication=False)
        self._sketches.append(sketch)
        return False


@dataclass(frozen=True)
class FilterSettings:
    """Settings of the quality filters.

    Attributes:
        language: ISO 639-1 code of the language that responses are in, or "any".
        near_duplicates: Jaccard similarity of word 5-grams from which two responses count as duplicates, in (0, 1]; 1 is off.
    """

    language: str = defaults.LANGUAGE
    near_duplicates: float = NEAR_DUPLICATES


DEFAULT_FILTERS = FilterSettings()


class ResponseFilters:
    """The filters of one run, with counts and examples of what they refused.

    Attributes:
        rules: the filters of single texts by name; a rule is true for a text that it refuses.
        refused: number of responses that a filter refused, by its name.
        examples: the first few refused texts (shortened), by the filter's name.
    """

    def __init__(
        self,
        settings: FilterSettings = DEFAULT_FILTERS,
        *,
        quality: Callable[[Sequence[str]], Sequence[bool]] | None = None,
    ) -> None:
        """Set up.

        Args:
            settings: which filters are on.
            quality: whether texts that pass the filters of single texts are good enough (see
                :mod:`tamperfuse.pairing.quality`).

        Raises:
            UserError: the language is unknown.
        """
        self.rules = dict(RULES)
        if settings.language != "any":
            self.rules["other language"] = _other_language(settings.language)
        self._is_duplicate = (
            NearDuplicates(settings.near_duplicates).is_duplicate if settings.near_duplicates < 1 else None
        )
        self._quality = quality
        self._accepted: dict[int, bool] = {}
        self.refused: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    @property
    def judged(self) -> int:
        """Number of texts that were judged."""
        return len(self._accepted)

    def __call__(self, responses: Sequence[Example]) -> list[bool]:
        """Whether responses may be used; a text is judged once, however often it is drawn."""
        keys = [text_key(response.response, "filter", 0) for response in responses]
        new = {
            key: response.response for key, response in zip(keys, responses, strict=True) if key not in self._accepted
        }
        with progress("filtering", len(new)) as advance:
            for key, text in new.items():
                refusing_rule = next((name for name, rule in self.rules.items() if rule(text)), None)
                self._accepted[key] = refusing_rule is None
                if refusing_rule:
                    self._count_refusal(refusing_rule, text)
                advance(1)
        remaining = {key: text for key, text in new.items() if self._accepted[key]}
        if self._quality is not None and remaining:
            for (key, text), is_good in zip(remaining.items(), self._quality(list(remaining.values())), strict=True):
                self._accepted[key] = is_good
                if not is_good:
                    self._count_refusal("low quality", text)
        self._refuse_duplicates({key: text for key, text in remaining.items() if self._accepted[key]})
        return [self._accepted[key] for key in keys]

    def _refuse_duplicates(self, texts: Mapping[int, str]) -> None:
        """The last test, so that a text that is refused for another reason refuses no other."""
        if self._is_duplicate is None:
            return
        with progress("comparing responses", len(texts)) as advance:
            for key, text in texts.items():
                if self._is_duplicate(text):
                    self._accepted[key] = False
                    self._count_refusal("near duplicate", text)
                advance(1)

    @property
    def names(self) -> list[str]:
        """The filters that are on, in the order in which they are applied."""
        quality = ["low quality"] if self._quality is not None else []
        return [*self.rules, *quality, *(["near duplicate"] if self._is_duplicate is not None else [])]

    def _count_refusal(self, name: str, text: str) -> None:
        self.refused[name] += 1
        if len(examples := self.examples.setdefault(name, [])) < EXAMPLES:
            examples.append(text[:200])
