"""The documentation site is built as `make docs` builds it, without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What a browser loads by itself when it opens a page; links that a reader follows are not meant.
LOADED = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


def test_every_page_of_the_documentation_is_on_the_site_under_its_own_path(site: Path) -> None:
    sources = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sources | {"index.html", "CONTRIBUTING.html", "examples/plugin/index.html"} <= pages(site).keys()
    assert 'href="docs/attacks.html#the-adaptive-attacker"' in pages(site)["index.html"]
    assert 'href="../CONTRIBUTING.html#a-defense"' in pages(site)["docs/architecture.html"]


def test_files_that_pages_link_to_are_copied(site: Path) -> None:
    for name in ("studies/policy.yaml", "docs/images/report.png", "studies/results/search/summary.json"):
        assert (site / name).read_bytes() == (ROOT / name).read_bytes()


def test_formulas_are_mathml(site: Path) -> None:
    theory = pages(site)["docs/theory.html"]
    assert theory.count("<math") > 100 and "arithmatex" not in theory
    equation = next(part for part in theory.split('<div class="formula">') if "(15)</span>" in part)
    assert "<msub><mi>&#x003C0;</mi>" in equation and "tag" not in equation.partition("</div>")[0]


@pytest.mark.parametrize("tag", ['<script src="https://a.b/c.js">', "<link rel=stylesheet href=//a.b/c.css>"])
def test_a_remote_file_is_noticed(tag: str) -> None:
    assert LOADED.search(tag) and not LOADED.search(tag.replace("https:", "").replace("//a.b", "assets"))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    assert {name: remote for name, text in pages(site).items() if (remote := LOADED.findall(text))} == {}
    assert not [path for path in site.rglob("*.css") if re.search(r"url\([\"']?https?:", path.read_text("utf-8"))]


def test_tables_and_fences_are_rendered_on_every_page(site: Path) -> None:
    """Python-Markdown is stricter than GitHub: it needs blank lines where GitHub does not."""
    for name, text in pages(site).items():
        outside = re.sub(r"<pre\b.*?</pre>|<code\b.*?</code>", "", text, flags=re.S)
        assert "| ---" not in outside and "|---" not in outside and "```" not in outside, name
        assert not re.search(r"<td[^>]*>\s*(?:<!--|\x02)", outside), f"{name}: a comment became a row of a table"
