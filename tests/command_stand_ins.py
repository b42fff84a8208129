"""What tests of the command line share."""

import pytest

from tamperfuse.cli.app import main


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code of a command, and all that it prints."""
    code, out, err = _run(arguments, capsys)
    return code, out + err


def output(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    """Standard output of a command that ends with an exit code."""
    ended, out, err = _run(arguments, capsys)
    assert ended == code, err
    return out


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error of a command that refuses its input: exit code 2, no traceback, one message at the end."""
    code, _, err = _run(arguments, capsys)
    assert code == 2 and "Traceback" not in err and err.count("tamperfuse: ") == 1, err
    assert err.splitlines()[-1].startswith("tamperfuse: "), err
    return err


def _run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err
