"""How often the p of each geometry measure is at most .05 where nothing it is named for changed.

    python bench/probe/centroids.py [--rounds 3000]

Base and trained states of P personas, 16 questions and 40 channels. Each persona, state and the reference have noise of
their own in either model. `drift` adds 3 to every channel of every persona's states of the trained model; `unequal`
scales each persona's part by a log-normal factor. Measures that see the drift are left out of its rows.
"""

from __future__ import annotations

import argparse

import numpy as np

from veritune.stats.centroids import MEASURES, Centroids, changes

BLIND = ("icc", "separation")
SCENES = {"nothing changed": (0.0, False), "unequal personas": (0.0, True), "drift, unequal personas": (3.0, True)}


def side(h_P_Q_H: np.ndarray, reference_H: np.ndarray) -> Centroids:
    """One model's layer from all its states."""
    around = h_P_Q_H - h_P_Q_H.mean(0)
    return Centroids(h_P_Q_H.mean(1), reference_H, np.einsum("pqh,rqh->pr", around, around), h_P_Q_H.shape[1])


def null(draw: np.random.Generator, n_personas: int, drift: float, unequal: bool) -> tuple[Centroids, Centroids]:
    """Base and trained with no change but the drift."""
    common, persona = 2 * draw.normal(size=40), draw.normal(size=(n_personas, 1, 40))
    persona *= np.exp(draw.normal(size=(n_personas, 1, 1))) if unequal else 1.0
    question, single = 2 * draw.normal(size=(1, 16, 40)), draw.normal(size=(n_personas, 16, 40))
    made = []
    for shift in (0.0, drift):
        own = persona + 0.15 * draw.normal(size=persona.shape) + 0.5 * draw.normal(size=single.shape)
        reference = common + question.mean((0, 1)) + 0.3 * draw.normal(size=40)
        made.append(side(common + shift + question + single + own, reference))
    return made[0], made[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3000)
    rounds = parser.parse_args().rounds
    print(f"share of p <= .05 in {rounds} rounds; .05 + 3 s.e. = {0.05 + 3 * (0.05 * 0.95 / rounds) ** 0.5:.3f}\n")
    print("| personas | null | " + " | ".join(MEASURES) + " |")
    print("| --- " * (len(MEASURES) + 2) + "|")
    for n_personas in (5, 6, 8, 12):
        for name, (drift, unequal) in SCENES.items():
            draw, low = np.random.default_rng(0), dict.fromkeys(MEASURES, 0)
            for _ in range(rounds):
                for measure, change in changes(*null(draw, n_personas, drift, unequal)).items():
                    low[measure] += change.p is not None and change.p <= 0.05
            seen = [f"{low[m] / rounds:.3f}" if not drift or m in BLIND else "sees it" for m in MEASURES]
            print(f"| {n_personas} | {name} | " + " | ".join(seen) + " |", flush=True)


if __name__ == "__main__":
    main()
