"""What tests of the command line share."""

import pytest

from tamperfuse.cli.app import main


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code of a command, and all that it prints."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out + shown.err
