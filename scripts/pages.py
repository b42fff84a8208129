"""Tables that scripts put into the documentation's pages."""

import re
from pathlib import Path

from tamperfuse.records.errors import UserError

END = "<!-- end of tables -->"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def put(page: Path, command: str, text: str) -> None:
    """Replace what stands between a page's marks, the first of which names the command that made it.

    Args:
        page: a Markdown file.
        command: "python scripts/NAME.py …"; the marks of another call of the same script are replaced as well.
        text: what to put there.

    Raises:
        UserError: the page cannot be read or written, or has no marks of this script.
    """
    begin = f"<!-- tables: {command} -->"
    script = re.escape(" ".join(command.split()[:2]))
    pattern = re.compile(rf"<!-- tables: {script}(?: [^\n]*)?-->.*?{re.escape(END)}", re.DOTALL)
    try:
        before = page.read_text(encoding="utf-8")
        if not pattern.search(before):
            raise UserError(f"{page} has no marks ({begin} … {END}): add them where the tables belong.")
        page.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{END}", before), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{page} cannot be read and written: name a page that can.") from error
