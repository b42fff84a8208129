"""Copies the demo's study into the built package, since `tamperfuse demo` needs it where there is no source tree.

All other settings are in pyproject.toml.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithDemo(build_py):
    """Adds `studies/demo.yaml` to the package as `tamperfuse/studies/demo.yaml`."""

    def run(self) -> None:
        """Build the package, then copy the study."""
        super().run()
        target = Path(self.build_lib, "tamperfuse", "studies")
        target.mkdir(parents=True, exist_ok=True)
        self.copy_file("studies/demo.yaml", str(target / "demo.yaml"))


setup(cmdclass={"build_py": BuildWithDemo})
