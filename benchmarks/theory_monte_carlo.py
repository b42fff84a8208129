"""Compare Monte Carlo of the feature model with its exact form, in logit space and with explicit feature vectors.

    python benchmarks/theory_monte_carlo.py            200 settings x 100,000 samples
    python benchmarks/theory_monte_carlo.py --quick    200 settings x 5,000 samples

`ours` computes the exact accuracies of all settings and draws all samples in logit space, in blocks. The rival draws one sample
at a time from the definition of the model: each feature vector in K x features dimensions, summed under the mask and multiplied
by the head. It runs on a subset of the settings with few samples, and its time is extrapolated to the same number of samples. Its
accuracies must agree as well. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import numpy as np

from tamperfuse.theory import FeatureCounts, Setting, accuracies, compare, draw_design, exact_accuracy
from tamperfuse.theory.exact import win_probability

SETTINGS, SUBSET = 200, 20


def ensemble_weights(counts: FeatureCounts, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients in mask and head (lam, 1 - lam or 1) of the invariant features and of the spurious ones."""
    parts = []
    for hardened, attack, shared in (
        (counts.invariant, counts.attack_invariant, counts.shared_invariant),
        (counts.spurious, counts.attack_spurious, counts.shared_spurious),
    ):
        parts.append(np.repeat([lam, 1.0 - lam, 1.0], [hardened - shared, attack - shared, shared]))
    return parts[0], parts[1]


def plain_monte_carlo(setting: Setting, samples: int, rng: np.random.Generator) -> float:
    """Share of correct samples, each drawn as feature vectors without noise; ties are broken at random."""
    invariant, spurious = ensemble_weights(setting.counts, setting.lam)
    coefficient = np.concatenate([invariant, spurious])
    features, classes = len(coefficient), setting.classes
    # The columns of all mu are unit vectors of one orthonormal basis: mu_j e_k is basis vector j K + k.
    head = np.zeros((features * classes, classes))
    for j in range(features):
        head[j * classes : (j + 1) * classes] = coefficient[j] * np.eye(classes)
    right = 0
    for _ in range(samples):
        label = int(rng.integers(classes))
        votes = np.full(features, label)
        at_random = np.flatnonzero(rng.random(len(spurious)) < setting.p) + len(invariant)
        votes[at_random] = rng.integers(classes, size=len(at_random))
        vectors = np.zeros((features, features * classes))
        vectors[np.arange(features), np.arange(features) * classes + votes] = 1.0
        logits = (coefficient @ vectors) @ head
        right += int(rng.choice(np.flatnonzero(logits > logits.max() - 1e-9))) == label
    return right / samples


def main(argv: list[str] | None = None) -> int:
    """Run both sides and print the result; exit code 1 if Monte Carlo and the exact form disagree."""
    parser = argparse.ArgumentParser(description="Monte Carlo of the feature model against its exact form.")
    parser.add_argument("--quick", action="store_true", help="5,000 samples a setting instead of 100,000")
    parser.add_argument("--seed", type=int, default=6)
    arguments = parser.parse_args(argv)
    samples, rival_samples = (5_000, 100) if arguments.quick else (100_000, 400)

    design = draw_design(SETTINGS, np.random.default_rng(arguments.seed))
    win_probability.cache_clear()  # drawing the design has cached its accuracies
    start = time.perf_counter()
    exact = [exact_accuracy(s.counts.mixture(s.lam), s.classes, s.p) for s in design]
    exact_seconds = time.perf_counter() - start
    comparison = compare(design, samples, np.random.default_rng(arguments.seed + 1))
    ours_seconds = time.perf_counter() - start
    largest = max(range(SETTINGS), key=lambda i: abs(comparison.z[i]))
    print(f"{SETTINGS} settings, accuracy {min(exact):.3f} to {max(exact):.3f}; exact form {exact_seconds:.1f} s,")
    print(
        f"with {samples:,} samples per setting {ours_seconds:.1f} s. Largest |z| {comparison.max_abs_z:.2f} at {design[largest]}"
    )
    errors = np.abs(comparison.limit_error)
    print(
        f"limit form: error median {np.median(errors):.4f}, 90% {np.quantile(errors, 0.9):.4f}, max {errors.max():.4f}"
    )
    for counts in (FeatureCounts(3, 20, 2, 21), FeatureCounts(5, 20, 1, 30)):
        a = accuracies(counts, 3, 0.9)
        print(
            f"{counts}: exact {a.hardened:.4f} -> {a.mixture:.4f}, "
            f"limit {a.hardened_limit:.4f} -> {a.mixture_limit:.4f}"
        )

    rng, subset = np.random.default_rng(arguments.seed + 2), design[:: SETTINGS // SUBSET]
    start = time.perf_counter()
    simulated = np.array([plain_monte_carlo(setting, rival_samples, rng) for setting in subset])
    spent = time.perf_counter() - start
    truth = np.array([setting.exact for setting in subset])
    rival_z = np.abs(simulated - truth) / np.sqrt(truth * (1 - truth) / rival_samples)
    rival_seconds = spent * (SETTINGS * samples) / (len(subset) * rival_samples)
    print(
        f"rival: {len(subset)} of the settings x {rival_samples} samples in {spent:.1f} s, "
        f"largest |z| {rival_z.max():.2f}; scaled by {SETTINGS * samples // (len(subset) * rival_samples)}"
    )
    agrees = comparison.max_abs_z < 4.0 and comparison.chi2_p > 1e-3
    print(
        json.dumps(
            {
                "benchmark": "theory_monte_carlo",
                "ours": round(ours_seconds, 3),
                "rival": round(rival_seconds, 1),
                "unit": "s",
                "ratio": round(rival_seconds / ours_seconds, 1),
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "max_abs_z": round(comparison.max_abs_z, 3),
                "chi2_p": round(comparison.chi2_p, 4),
                "settings": SETTINGS,
                "samples": samples,
                "rival_scaled_from_samples": len(subset) * rival_samples,
                "agrees": agrees,
            }
        )
    )
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
