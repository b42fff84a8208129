"""docs/gate.md lists every path that a policy can name."""

import re
import subprocess
import sys
from pathlib import Path

from report.made_up_run import summary
from tamperfuse.records.summary import NOT_MEASURED, MeanScore
from tamperfuse.report.gate_paths import COMPUTED, measures_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gate.md"


def test_the_page_is_current(tmp_path: Path) -> None:
    copy = tmp_path / "gate.md"
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([sys.executable, ROOT / "scripts" / "gate_paths.py", copy], check=True)
    written, expected = (re.sub("<!-- tables: .*-->", "", page.read_text(encoding="utf-8")) for page in (PAGE, copy))
    assert written == expected, "run: python scripts/gate_paths.py docs/gate.md"


def test_the_page_lists_every_path_and_no_other() -> None:
    listed = re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(encoding="utf-8"), re.M)
    patterns = {path: re.compile(re.sub("ATTACK|CONTROL|TASK|SHARE", ".+", re.escape(path))) for path in listed}
    scores = MeanScore(before_attack=NOT_MEASURED, after_attack={"a": NOT_MEASURED}, after_control={"b": NOT_MEASURED})
    paths = set(measures_of(summary().defenses["sdd"].model_copy(update={"mean_score": scores})))
    assert not [path for path in paths if not any(pattern.fullmatch(path) for pattern in patterns.values())]
    of_defense = [path for path in listed if path not in ("harmful_execution", "capability", "benign_nll")]
    assert not [path for path in of_defense if not any(patterns[path].fullmatch(name) for name in paths)]
    assert set(COMPUTED) <= set(listed)
