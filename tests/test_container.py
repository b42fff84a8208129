"""The Dockerfile names files, packages and extras that exist. The tests do not build the image."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments; comments dropped, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    parts = [line.partition(" ") for line in "\n".join(lines).replace("\\\n", "").splitlines()]
    return [(word, rest) for word, _, rest in parts]


def copied() -> list[str]:
    return [source for word, rest in instructions() if word == "COPY" for source in rest.split()[:-1]]


def installs() -> list[list[str]]:
    """Arguments of every `pip install`."""
    commands = [command for word, rest in instructions() if word == "RUN" for command in rest.split("&&")]
    return [shlex.split(command)[2:] for command in commands if command.split()[:2] == ["pip", "install"]]


def test_what_is_copied_exists_and_is_in_the_build_context() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    included = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert "*" in lines and lines.index("*") < lines.index(f"!{included[0]}")
    assert sorted(included) == sorted(copied())
    assert all((ROOT / name).exists() for name in copied())


def test_the_package_can_be_built_from_what_is_copied(tmp_path: Path) -> None:
    for name in copied():
        target = tmp_path / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, target, ignore=ignore) if (ROOT / name).is_dir() else shutil.copy(
            ROOT / name, target
        )
    built = tmp_path / "built"
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(built), "egg_info", "-e", str(tmp_path)]
    subprocess.run(command, cwd=tmp_path / "source", check=True, capture_output=True)
    assert (built / "tamperfuse" / "studies" / "demo.yaml").exists()
    named = [PROJECT["readme"], *PROJECT["license-files"], "constraints.txt"]
    assert all((tmp_path / "source" / name).is_file() for name in named)


def test_every_package_is_pinned_and_every_extra_exists() -> None:
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    packages = []
    for words in installs():
        assert words[words.index("--constraint") + 1] == "constraints.txt"
        packages.append(words[-1])
    *others, project = packages
    assert set(others) <= pinned
    extras = re.fullmatch(r"\.\[([\w,]+)\]", project)
    assert extras and set(extras[1].split(",")) <= PROJECT["optional-dependencies"].keys()
    makefile = (ROOT / "Makefile").read_text()
    assert [name for name in others if f" {name}\n" in makefile] == others, "the Makefile installs the same ones"


def test_everything_that_a_development_installation_needs_is_pinned() -> None:
    pinned = {
        canonicalize_name(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    needed: set[tuple[str, str]] = set()
    left = [("tamperfuse", extra) for extra in ("", "dev")]
    while left:
        name, extra = left.pop()
        if (name, extra) in needed:
            continue
        needed.add((name, extra))
        for requirement in map(Requirement, distribution(name).requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                left += [(canonicalize_name(requirement.name), option) for option in ("", *requirement.extras)]
    assert {name for name, _ in needed} - pinned == {"tamperfuse"}


def test_the_program_runs_as_a_user_without_privileges() -> None:
    words = [word for word, _ in instructions()]
    last = dict(instructions())
    assert last["USER"] not in ("root", "0")
    assert words.index("USER") < words.index("ENTRYPOINT") and "RUN" not in words[words.index("USER") :]
    assert last["ENTRYPOINT"] == '["tamperfuse"]' and "tamperfuse" in PROJECT["scripts"]


def test_the_arguments_that_choose_the_device_have_defaults_for_cpus() -> None:
    arguments = [rest for word, rest in instructions() if word == "ARG"]
    assert [argument.partition("=")[0] for argument in arguments] == ["BASE", "TORCH_INDEX"]
    assert all("nvidia" not in argument and not argument.endswith("=") for argument in arguments)
    documented = (ROOT / "docs" / "your-model.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--build-arg (\w+)=", documented)) == {"BASE", "TORCH_INDEX"}
