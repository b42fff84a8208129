"""Copies the results of a finished run to `studies/results/`: what `tamperfuse report` needs, without nodes and page.

python scripts/publish_results.py runs/attacks      writes studies/results/attacks/
"""

import shutil
import sys
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "studies" / "results"
FILES = ("study.yaml", "results.parquet", "summary.json", "samples.json", "run.json")
OPTIONAL = ("searches.json",)  # of studies with an adaptive attacker


def publish(run: Path, target: Path) -> None:
    """Replace the files of `target` by those of the run."""
    if run.resolve() == target.resolve():
        sys.exit(f"{run} is published already: name the folder of a finished run.")
    missing = [name for name in FILES if not (run / name).is_file()]
    if missing:
        sys.exit(f"{run} has no {missing[0]}: name the folder of a finished run.")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in (*FILES, *OPTIONAL):
        if (run / name).is_file():
            shutil.copyfile(run / name, target / name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python scripts/publish_results.py RUN")
    folder = Path(sys.argv[1])
    publish(folder, RESULTS / folder.resolve().name)
    print(RESULTS / folder.resolve().name)
