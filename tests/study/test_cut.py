"""Whether the token limit cut a response is what the tokens say, and is unknown for responses of older versions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tamperfuse.corpora.threats import load_threat
from tamperfuse.models.load import LoadedModel
from tamperfuse.study.observe import Observer
from tamperfuse.study.sections import Evaluate
from tamperfuse.study.tables import Response, read_rows, write_rows


@pytest.mark.parametrize("text", ["It is done, and it ends with a full stop.", "It is not done and ends in the", ""])
def test_a_response_is_cut_if_no_end_token_came_within_the_limit(
    text: str, tiny: LoadedModel, threat_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tiny.chat.response(text)

    def generated(loaded: LoadedModel, prompts: Sequence[list[int]], **_: Any) -> list[list[int]]:
        return [tokens for _ in prompts]

    monkeypatch.setattr("tamperfuse.study.observe.generate", generated)
    for limit in {max(8, len(tokens)), max(8, len(tokens)) + 1}:
        observer = Observer(tiny, load_threat(str(threat_file)), Evaluate(response_tokens=limit))
        observer.ask(1, 2, 1)
        assert [(row.response, row.cut) for row in observer.responses] == [(text, len(tokens) == limit)] * 3
        assert not text or len(tokens) >= 8, "the first limit is exactly as long as the text"


def test_responses_of_an_older_version_lack_what_it_did_not_record(tmp_path: Path) -> None:
    rows, path = [Response(0, "evaluation", "a", "A prompt", "An answer.", cut=True)], tmp_path / "responses.parquet"
    write_rows(path, Response, rows)
    assert read_rows(path, Response) == rows
    pq.write_table(pq.read_table(path).drop_columns("cut"), path)
    assert read_rows(path, Response) == [replace(rows[0], cut=None)]
