"""Hooks of MkDocs: the documentation site has the folders of the repository, and its formulas need no script.

Pages of docs/ link to README.md, CONTRIBUTING.md and a few other files outside docs/, and those link back. MkDocs reads docs/
only; this hook gives every file of docs/ its path in the repository and adds the others, so that one text with one set of
relative links works in the repository and on the site. TeX becomes MathML, which browsers draw themselves. `mkdocs.yml` names
the hooks; nothing is run by hand.
"""

import re
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

#: Files outside docs/ that the site holds. A link to any other file fails in `mkdocs build --strict`.
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "examples/notebook/first_look.ipynb",
    "examples/plugin/README.md",
    "src/tamperfuse/corpora/data/CARD.md",
    "studies/policy.yaml",
    "studies/results/curve/run.json",
    "studies/results/demo/summary.json",
    "studies/results/search/summary.json",
)


#: A formula as pymdownx.arithmatex writes it.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
TAG = re.compile(r"\\tag\{(\d+)\}")  # the number of an equation, which MathML lacks


def on_page_content(html: str, **_: object) -> str:
    """Return the page's HTML with MathML for TeX."""
    return FORMULA.sub(_mathml, html)


def _mathml(match: re.Match[str]) -> str:
    tex = unescape(match[2])
    number = TAG.search(tex)
    label = f" <span>({number[1]})</span>" if number else ""
    kind = match[1]
    formula = convert(TAG.sub("", tex), display="block" if kind == "div" else "inline")
    return f'<{kind} class="formula">{formula}{label}</{kind}>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the files of the site, under their paths in the repository; those of the theme are left as they are."""
    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    placed = [file for file in files if file.src_dir != config.docs_dir]
    paths = [docs / file.src_uri for file in files if file.src_dir == config.docs_dir]
    for path in [*paths, *(root / name for name in OUTSIDE)]:
        placed.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return Files(placed)
