"""Measure how much of a hardening an export to Q4_1 undoes.

    python scripts/export_grid.py ORIGIN HARDENED

The weights of a model that was read from a Q4_1 file lie on a grid, and exporting it again rounds away any change smaller than
half a grid step. Prints the share of the layers' weights that the export of the hardened model returns to their value in the
origin (to within a thousandth of the largest weight of each matrix), and the same share for the export of the origin.
"""

import sys

import torch

from tamperfuse.attacks.quantize import through_gguf
from tamperfuse.models.layers import layer_matrices
from tamperfuse.models.load import load_model


def main() -> None:
    origin, hardened = (layer_matrices(load_model(name).model) for name in sys.argv[1:3])
    total = on_grid = returned = 0
    with torch.no_grad():
        for before, after in zip(origin, hardened, strict=True):
            tolerance = 1e-3 * before.abs().max()
            total += before.numel()
            on_grid += int(((through_gguf(before, "Q4_1") - before).abs() < tolerance).sum())
            returned += int(((through_gguf(after, "Q4_1") - before).abs() < tolerance).sum())
    print(
        f"{on_grid / total:.1%} of the origin's weights are on the grid; the export of the hardened model returns "
        f"{returned / total:.1%} of its weights to their values in the origin."
    )


if __name__ == "__main__":
    main()
