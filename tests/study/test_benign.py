"""The benign set: what is in it, what is left out, and what a defense receives."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stand_ins import WordCountEncoder
from tamperfuse.corpora.threats import Threat, ThreatPrompt, load_threat
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json
from tamperfuse.study import benign
from tamperfuse.study.benign import (
    CONTRAST,
    DOCUMENT,
    DOCUMENT_LENGTH,
    HELD_BACK,
    PLAIN,
    SELF_WRITTEN,
    benign_prompts,
    card_of,
    read_benign_set,
    select,
    write_benign_set,
    write_self_samples,
)
from tamperfuse.study.tables import BenignRow
from tamperfuse.training.distillation import TeacherSample


@pytest.fixture
def threat(threat_file: Path) -> Threat:
    return load_threat(str(threat_file), WordCountEncoder())


def vectors(text: str) -> np.ndarray:
    return WordCountEncoder().encode([text])[0]


def row(prompt: str, response: str = "an answer", kind: str = SELF_WRITTEN) -> BenignRow:
    return BenignRow(kind, prompt, response)


def test_samples_of_the_threat_repeated_and_measured_ones_are_left_out(threat: Threat) -> None:
    request = threat.part("defender")[0].prompt
    doubtful = " ".join(request.split()[:3]) + " of quite another kind altogether today and yesterday"
    highest = max(float(vectors(p.prompt) @ vectors(doubtful)) for p in threat.part("defender"))
    assert benign.DOUBTFUL_COSINE <= highest < benign.WITHIN_COSINE
    contrast = f"{request} said nobody ever in this town"
    assert benign.WITHIN_COSINE <= float(vectors(request) @ vectors(contrast)) < 0.9
    rows = [
        row("why do birds sing"), row("Why do birds sing?"), row(request), row(doubtful, "executed"),
        row("how tall is a giraffe"), row(contrast, kind=CONTRAST),
    ]  # fmt: skip
    judged: list[tuple[str, str]] = []

    def executes(pairs):
        judged.extend(pairs)
        return [response == "executed" for _, response in pairs]

    left, dropped = select(rows, threat, ["how tall is a giraffe"], WordCountEncoder(), executes)
    assert [r.prompt for r in left] == ["why do birds sing", contrast]
    assert dropped == {
        "repeated": 1, "of the threat, by the encoder": 1, "of the threat, by the judge": 1, "near a measured prompt": 1,
    }  # fmt: skip
    assert [answer for _, answer in judged] == ["executed"], "the answer is judged as an answer to the nearest request"


def test_nothing_left_is_an_error_that_says_why(threat: Threat) -> None:
    with pytest.raises(UserError, match="1 of the threat, by the encoder"):
        select([row(threat.part("defender")[0].prompt)], threat, [], WordCountEncoder(), lambda pairs: [])


def test_a_written_set_is_read_back_with_a_part_held_back(tiny: LoadedModel, tmp_path: Path) -> None:
    rows = [row(f"harmless question {i}", f"some answer {i}") for i in range(2 * HELD_BACK)]
    tokens, card = write_benign_set(tmp_path, tiny, rows, {"repeated": 3}, 32)
    read = read_benign_set(tmp_path)
    plain = round(benign.PLAIN_SHARE * len(rows))
    assert len(read.train) + len(read.held_back) == len(rows) + plain
    assert 0 < len(read.held_back) < len(rows) / 4
    trained, held_back = ({_response(tiny, sample) for sample in part} for part in (read.train, read.held_back))
    assert trained.isdisjoint(held_back), "a response is on one side, with its prompt and without"
    assert set(read.exchanges) < {(r.prompt, r.response) for r in rows}
    assert tokens == sum(len(s.sample.tokens) for s in [*read.train, *read.held_back])
    assert card == read_json(tmp_path / benign.CARD)
    assert card["kinds"] == {SELF_WRITTEN: len(rows), PLAIN: plain} and card["left_out"] == {"repeated": 3}
    without_prompt = [s.sample for s in read.train if s.sample.start == 1]
    assert without_prompt, "text without the template is predicted from its first token on"


def _response(loaded: LoadedModel, sample: TeacherSample) -> str:
    """The text of a response; all of a text without a prompt is one."""
    tokens = sample.sample.tokens
    words = tokens if sample.sample.start == 1 else tokens[sample.sample.start :]
    return str(loaded.tokenizer.decode(words, skip_special_tokens=True)).strip()


def test_of_a_single_response_nothing_is_held_back(tiny: LoadedModel, tmp_path: Path) -> None:
    write_benign_set(tmp_path, tiny, [row("a question"), row("another question", kind=CONTRAST)], {}, 8)
    read = read_benign_set(tmp_path)
    assert len(read.train) == 3 and not read.held_back, "the sample near the threat is there twice"


def test_no_answer_at_all_is_an_error(threat: Threat) -> None:
    with pytest.raises(UserError, match="answers none of the benign prompts"):
        select([], threat, [], WordCountEncoder(), lambda pairs: [])


def test_diversity_is_the_share_of_different_word_pairs() -> None:
    card = card_of([row("a b c", "x y"), row("a b d", "x y")], {})
    assert card["distinct_2"] == {"prompt": 0.75, "response": 0.5}


def test_only_the_users_sources_name_prompts(benign_file: Path, threat: Threat) -> None:
    encoder = WordCountEncoder()
    assert benign_prompts(["self", "documents"], threat, encoder) == []
    prompts = benign_prompts(["self", str(benign_file)], threat, encoder)
    assert len(prompts) == 14 and all(prompt.startswith("harmless question") for prompt in prompts)


def test_documents_are_longer_than_answers(tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [{"prompt": f"Write a poem about subject number {i}."} for i in range(4)]
    monkeypatch.setattr(benign, "builtin_rows", lambda name: prompts if name == "documents" else ())
    rows, generated = write_self_samples(tiny, ["documents"], ["a harmless question"], 10, 8)
    kinds = [r.kind for r in rows]
    assert kinds.count(DOCUMENT) == 4 and kinds.count(benign.NAMED) == 1
    assert 8 < generated <= 8 + 4 * 8 * DOCUMENT_LENGTH
    long = "one two three four five six seven eight nine ten " * 20
    write_benign_set(tmp_path, tiny, [row("a", long, DOCUMENT), row("b", long, benign.FACTS)], {}, 8)
    samples = [*read_benign_set(tmp_path).train, *read_benign_set(tmp_path).held_back]
    assert sorted(s.sample.response_tokens for s in samples) == [8, 8 * DOCUMENT_LENGTH]


def test_benign_prompts_longer_than_the_window_are_left_out_and_counted(
    tiny: LoadedModel, threat: Threat, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = {"a short question": "named", "peas " * 600: "named", "another question": "named"}
    rows, generated = benign.answer_prompts(tiny, prompts, 8)
    assert {row.prompt for row in rows} <= {"a short question", "another question"} and generated > 0
    assert "1 of 3 benign prompts are left out: with an answer of 8 tokens they are longer than" in caplog.text
    longer = replace(
        threat, parts={**threat.parts, "defender": (*threat.parts["defender"], ThreatPrompt("x", "peas " * 600))}
    )
    benign.near_prompts(tiny, longer, 30)
    assert "prompts near the threat are left out" in caplog.text
