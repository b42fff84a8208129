"""Words of any script, and which prompts count as the same."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tamperfuse.corpora.overlap import distinct, near, plain
from tamperfuse.corpora.texts import words
from tamperfuse.evaluation.judges.text import echo, repetition, word_count
from tamperfuse.models.encoder import DEFAULT_ENCODER

# Of each pair, the letters without their combining marks are equal.
DIFFERENT = [("की", "कि"), ("ผู้", "ผี"), ("কি", "কী"), ("கி", "கூ"), ("مَن", "مِن"), ("שָׁלוֹם", "שְׁלֹם")]


class SameVector:
    """An encoder that cannot distinguish any texts, as the default one in scripts that it does not know."""

    name = DEFAULT_ENCODER

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.ones((len(texts), 1), dtype=np.float32)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_combining_marks_distinguish_words(one: str, other: str) -> None:
    assert words(one) == [one]
    assert plain(f"{one}?") != plain(f"{other}?")
    assert word_count(one) == 1
    assert echo(one, other) == 0.0
    assert repetition(f"{one} {other} " * 3, size=2) == 1.0


def test_composed_and_decomposed_letters_are_the_same_word() -> None:
    assert words("Cafe\u0301 ÉTÉ") == words("café été") == ["café", "été"]


def test_punctuation_and_emoji_are_no_words() -> None:
    assert words("❤️, «Это» — it's!") == ["это", "it", "s"]


@given(st.text(st.characters(codec="ascii")))
def test_words_of_ascii_texts_are_runs_of_letters_digits_and_underscores(text: str) -> None:
    import re

    assert words(text) == re.findall(r"[a-z0-9_]+", text.lower())


@pytest.mark.parametrize(
    "prompts",
    [
        ["मैं चावल कैसे पकाऊँ?", "रोटी कैसे बनाते हैं?"],
        ["ฉันจะหุงข้าวได้อย่างไร", "วิธีเปลี่ยนยางจักรยาน"],
        ["আমি কীভাবে ভাত রান্না করব?", "আজ কি বৃষ্টি হবে?"],
        ["சோறு எப்படி சமைப்பது?", "இன்று மழை பெய்யுமா?"],
    ],
)
def test_an_english_encoder_makes_no_duplicates_in_other_scripts(
    prompts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert distinct(prompts, SameVector()) == [0, 1]
    assert "2 of 2 prompts are in a script" in caplog.text
    assert near(prompts[:1], prompts[1:], SameVector()) == {}
    assert near([f"  {prompts[0]} "], prompts, SameVector()) == {0: (prompts[0], "exact")}


def test_latin_prompts_are_compared_by_the_encoder_beside_others() -> None:
    prompts = ["Wie koche ich Käse?", "रोटी कैसे बनाते हैं?", "How do I cook cheese?"]
    assert distinct(prompts, SameVector()) == [0, 1]
    assert near(prompts[2:], prompts[:2], SameVector()) == {0: (prompts[0], "cosine 1.00")}
