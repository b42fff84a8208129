"""Plug-ins made of one module and the metadata that pip would install with it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tamperfuse.attacks import ATTACKS
from tamperfuse.defenses import DEFENSES
from tamperfuse.evaluation.judges import JUDGES
from tamperfuse.records.registry import plugin_of

REGISTRIES = (DEFENSES, ATTACKS, JUDGES)
InstallPlugin = Callable[..., None]


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registries that have not looked for plug-ins; what a test registers is removed after it."""
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "components", dict(registry.components))
        monkeypatch.setattr(registry, "_entry_points_loaded", False)
    yield
    plugin_of.cache_clear()


@pytest.fixture
def install_plugin(registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InstallPlugin]:
    """A function that installs a package of one module, which registers components of some kinds."""
    modules = []

    def install(name: str, source: str, *, kinds: tuple[str, ...] = ("defenses",), version: str = "1.0") -> None:
        module = name.replace("-", "_")
        modules.append(module)
        site = tmp_path / f"site-{name}-{version}"
        metadata = site / f"{module}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (site / f"{module}.py").write_text(source)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        groups = "\n".join(f"[tamperfuse.{kind}]\nplugin = {module}\n" for kind in kinds)
        (metadata / "entry_points.txt").write_text(groups)
        monkeypatch.syspath_prepend(site)
        plugin_of.cache_clear()
        for registry in REGISTRIES:
            registry._entry_points_loaded = False

    yield install
    for module in modules:
        sys.modules.pop(module, None)
