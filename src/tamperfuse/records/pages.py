"""The frame that all pages share: `templates/base.html.j2` with its style, and the script of tooltips and folded parts.

A page is one file that opens offline. Its content security policy allows only the scripts whose hashes it lists, so that a script
in a text of a model or a data set cannot run.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from tamperfuse.records.errors import printable

PACKAGE = "tamperfuse.records"


def page_environment(package: str) -> jinja2.Environment:
    """An environment with the templates of a package and those of the frame; every text is escaped and printable.

    Args:
        package: the module that has a folder `templates`.
    """
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader(PACKAGE)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def script_text(package: str, name: str) -> str:
    """A script of a package's folder `templates`."""
    return (files(package) / "templates" / name).read_text(encoding="utf-8")


def frame(contents: Sequence[tuple[str, str]], scripts: Sequence[str] = ()) -> dict[str, Any]:
    """The variables that the frame needs.

    Args:
        contents: the page's parts, as (anchor, title).
        scripts: code of the page, beside the script of the frame.
    """
    code = [script_text(PACKAGE, "page.js"), *scripts]
    return {
        "contents": contents,
        "scripts": [Markup(script) for script in code],
        "script_hashes": Markup(" ".join(_hash(script) for script in code)),
    }


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
