"""What a terminal shows after text and the control codes that rich writes."""

import re

TOKEN = re.compile(r"\x1b\[\??(?P<number>[\d;]*)(?P<code>[A-Za-z])|\r|\n|[^\x1b\r\n]+")


def screen_lines(output: str) -> list[str]:
    """Lines of a screen of any height and width, without the empty ones at its end."""
    lines, row, column = [""], 0, 0
    for match in TOKEN.finditer(output):
        text, code = match[0], match["code"]
        if code == "A":  # cursor up
            row -= int(match["number"] or 1)
            assert row >= 0, "the cursor leaves the screen"
        elif code == "K":  # erase the line
            assert match["number"] == "2"
            lines[row] = ""
        elif code:  # colours, and whether the cursor is visible
            assert code in "mhl", text
        elif text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.rstrip() for line in lines]
