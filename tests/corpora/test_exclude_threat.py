"""Text that is trained on as it is holds nothing of the threat."""

import json
import logging
from pathlib import Path

import pytest

from stand_ins import WordCountEncoder
from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.exclude_threat import read_outside_threat
from tamperfuse.corpora.threats import Threat, load_threat
from tamperfuse.records.errors import UserError

GARDEN = "garden plants"


def read(source: str, threat: Threat) -> list[Example]:
    return read_outside_threat(source, threat, option="benign", encoder=WordCountEncoder())


def test_where_gardening_is_the_threat_built_in_gardening_rows_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    cooking, gardening = load_threat("builtin:cooking"), load_threat("builtin:gardening")
    everything = read("builtin:replay", cooking)
    assert len(everything) == len(builtin_rows("replay")) and not caplog.text
    with caplog.at_level(logging.INFO, logger="tamperfuse"):
        remaining = read("builtin:replay", gardening)
    assert [e for e in everything if e.category != GARDEN] == remaining and len(remaining) == len(everything) - 9
    assert "9 of 256 rows belong to builtin:gardening" in caplog.text


def test_a_threat_is_no_benign_source_of_itself() -> None:
    gardening = load_threat("builtin:gardening")
    with pytest.raises(UserError, match=r"all 360 rows of it belong to builtin:gardening: name another source"):
        read("builtin:gardening", gardening)


def test_own_sources_are_kept_apart_from_the_threats_prompts(threat_file: Path, tmp_path: Path) -> None:
    threat = load_threat(str(threat_file))
    rows = [("Attacker request number 3, about subject 21", "yes"), ("how deep is the sea", "deep"), ("and why", "")]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": p, "response": r}) for p, r in rows))
    assert [example.prompt for example in read(str(file), threat)] == ["how deep is the sea"]
    file.write_text(json.dumps({"prompt": rows[0][0], "response": rows[0][1]}))
    with pytest.raises(UserError, match="cannot be used for `benign`, because all 1 rows of it belong to"):
        read(str(file), threat)


def test_labelled_responses_to_the_threat_are_no_benign_source() -> None:
    with pytest.raises(UserError, match="all 328 rows of it belong to builtin:cooking"):
        read("builtin:labelled", load_threat("builtin:cooking"))
