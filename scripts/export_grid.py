"""How much of a hardening a Q4_1 export keeps.

    python scripts/export_grid.py ORIGIN HARDENED

A model that came out of a Q4_1 file has its weights on that grid, and a change smaller than half a step is rounded away again.
Prints, over the layers' matrices, the share of weights that the export of the hardened model puts back to the origin's value
(within a thousandth of the matrix's largest), and the same for the export of the origin itself.
"""

import sys

import torch

from tamperfuse.attacks.quantize import through_gguf
from tamperfuse.models.layers import layer_matrices
from tamperfuse.models.load import load_model


def main() -> None:
    origin, hardened = (layer_matrices(load_model(name).model) for name in sys.argv[1:3])
    total = own = back = 0
    with torch.no_grad():
        for before, after in zip(origin, hardened, strict=True):
            near = 1e-3 * before.abs().max()
            total += before.numel()
            own += int(((through_gguf(before, "Q4_1") - before).abs() < near).sum())
            back += int(((through_gguf(after, "Q4_1") - before).abs() < near).sum())
    print(
        f"{own / total:.1%} of the origin's own weights are on the grid; {back / total:.1%} of the hardened model's return."
    )


if __name__ == "__main__":
    main()
