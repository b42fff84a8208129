"""Link the hardened models of a run, which need not be finished, under their defenses' names.

python scripts/link_models.py runs/attacks runs/figures      makes runs/figures/refusal, runs/figures/sdd, …

With several seeds the links are those of the lowest.
"""

import sys
from pathlib import Path

from tamperfuse.records.files import read_json


def link_models(run: Path, target: Path) -> list[Path]:
    """Make the links, in place of earlier ones; returns them.

    Raises:
        SystemExit: the run has no hardened model, or something else has a link's name.
    """
    records = [(read_json(path), path.parent) for path in (run / "nodes").glob("*/node.json")]
    models = [(record["seed"], record["what"], folder) for record, folder in records if record["kind"] == "defense"]
    if not models:
        sys.exit(f"{run} has no hardened model: name the folder of a run.")
    target.mkdir(parents=True, exist_ok=True)
    links = []
    for _, what, folder in sorted(models, reverse=True):  # of models with one name, the lowest seed's is linked last
        link = target / what.rpartition(", seed ")[0]
        if link.exists() and not link.is_symlink():
            sys.exit(f"{link} exists and is no link: remove it.")
        link.unlink(missing_ok=True)
        link.symlink_to((folder / "checkpoint").resolve(), target_is_directory=True)
        links.append(link)
    return sorted(set(links))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("Usage: python scripts/link_models.py RUN FOLDER")
    for link in link_models(Path(sys.argv[1]), Path(sys.argv[2])):
        print(link)
