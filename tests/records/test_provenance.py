"""What a published record of a checkpoint tells of the machine on which it was made: nothing."""

from pathlib import Path

import pytest

from tamperfuse.records.provenance import Provenance


def test_a_published_record_names_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prompts.txt").touch()
    record = Provenance(
        origin="/somewhere/that/is/gone/llama",
        made_by="sdd (seed 0)",
        source="refusal",
        base="owner/base",
        threat="data/prompts.txt",
        parameters={"steps": 4, "method": "lora", "list": "~/lists/words.txt"},
    )
    public = record.public()
    assert (public.origin, public.source, public.base) == (".../llama", "refusal", "owner/base")
    assert public.threat == ".../prompts.txt"
    assert public.parameters == {"steps": 4, "method": "lora", "list": ".../words.txt"}
    assert public.public() == public
    builtin = Provenance(origin="smollm2-135m", made_by="refusal (seed 0)", source="owner/a", threat="builtin:cooking")
    assert builtin.public() == builtin
