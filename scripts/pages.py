"""Generated tables in pages of the documentation."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from tamperfuse.records.errors import UserError

END = "<!-- end of tables -->"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def replace_tables(page: Path, command: str, text: str) -> None:
    """Replace the text between two comments in a page. The first comment names the command that generated the text.

    Args:
        page: a Markdown file.
        command: "python scripts/NAME.py …". If no comment in the page names it with these arguments, it may be one of the same
            script with others.
        text: the new text.

    Raises:
        UserError: the page cannot be read or written, has no such comments, or has several of them with other arguments.
    """
    start = f"<!-- tables: {command} -->"
    script = re.escape(" ".join(command.split()[:2]))
    of_script = re.compile(rf"<!-- tables: {script}(?: [^\n]*)?-->.*?{re.escape(END)}", re.DOTALL)
    of_command = re.compile(rf"{re.escape(start)}.*?{re.escape(END)}", re.DOTALL)
    try:
        before = page.read_text(encoding="utf-8")
        pattern = of_command if of_command.search(before) else of_script
        places = len(pattern.findall(before))
        if places > 1:
            raise UserError(
                f"{page} has {places} places for tables of this script: name one of them by the line {start}."
            )
        if not places:
            raise UserError(f"{page} has no place for the tables: add the lines {start} and {END} where they belong.")
        page.write_text(pattern.sub(lambda _: f"{start}\n{text}\n{END}", before), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{page} cannot be read and written: check that it is a text file and that you may write it."
        ) from error


def print_or_replace(arguments: list[str], script: str, usage: str, tables: Callable[[Path], str]) -> None:
    """What a script does with the folder of a run and, if named, a page: print the tables, or replace them in the page.

    Args:
        arguments: of the command line.
        script: name of the script, without suffix.
        usage: printed if there are neither one nor two arguments.
        tables: computes the tables from the folder.
    """
    if len(arguments) not in (1, 2):
        sys.exit(usage)
    try:
        text = tables(Path(arguments[0]))
        if len(arguments) == 1:
            print(text)
        else:
            replace_tables(Path(arguments[1]), f"python scripts/{script}.py {' '.join(arguments)}", text)
    except UserError as error:
        sys.exit(str(error))
