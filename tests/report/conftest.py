"""The made-up run, and one page of it for all tests that only read it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_run import Check, sample_answers, write_folder

from tamperfuse.records.run import SampleAnswer
from tamperfuse.records.summary import Summary
from tamperfuse.report.gate import GateResult, check_gate


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run's folder under the test's own directory."""
    return lambda **parts: write_folder(tmp_path / "demo", **parts)


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One page for all tests that only read it: Vega's code takes seconds to bundle."""
    from tamperfuse.report.page import write_report

    hostile = [
        SampleAnswer(
            defense="sdd",
            attack="full-100",
            step=16,
            prompt="<b>bold?</b>",
            response='</script><script>window.broken=1</script><img src="http://evil.example/x"> '
            "\u202eabc\u202c \x07 🍲 {{ 7*7 }}",
            harmful=True,
        )
    ]
    return write_report(write_folder(tmp_path_factory.mktemp("run") / "demo", samples=hostile + sample_answers()))


@pytest.fixture
def check(make_run: Callable[..., Path], tmp_path: Path) -> Check:
    """Checks a policy's text against the made-up run."""

    def run(text: str, measured: Summary | None = None) -> GateResult:
        policy = tmp_path / "policy.yaml"
        policy.write_text(text, encoding="utf-8")
        return check_gate(make_run(measured=measured), policy)

    return run
