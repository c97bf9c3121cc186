"""Summaries as `lit-xai attack` leaves them, numbers drawn from a seed."""

import json
import math
from pathlib import Path

import numpy as np

MEMBERS = ("pgd_20", "apgd_ce", "apgd_t", "fab_t", "square")


def wilson(count, of):
    z, share = 1.959964, count / of
    centre = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return {"accuracy": share, "low": centre - half, "high": centre + half}


def summary(regime="standard", seed=0, images=1000, suspicious=False):
    rng = np.random.default_rng([seed, *map(ord, regime)])
    clean, left = {"adversarial": (930, 470), "smoothed": (920, 250)}.get(regime, (960, 20))
    clean += int(rng.integers(-9, 9))
    standing = np.linspace(clean, left, 6).astype(int)[1:] + rng.integers(-8, 8)
    if not suspicious:
        standing[4] = standing[3]
    members, before = [], clean
    for name, count in zip(MEMBERS, standing.tolist(), strict=True):
        spent = {"seconds": 31.5, "forwards": 100 * before, "backwards": 100 * before}
        members.append(
            {"name": name, "attack": f"{name.upper()}()", "attacked": before, "fooled": before - count}
            | wilson(count, images)
            | spent
        )
        before = count
    epsilons = np.linspace(0, 2, 41).tolist()
    scale = {"adversarial": 1.1, "smoothed": 0.7}.get(regime, 0.25) + 0.02 * seed
    alive = [round(clean * math.exp(-((e / scale) ** 2))) for e in epsilons]
    at = [wilson(count, images) for count in alive]
    gates = [
        {"name": "monotone in epsilon", "passed": True, "said": "Accuracy never rises with epsilon."},
        {"name": "epsilon 1", "passed": True, "said": "At epsilon 1 accuracy is 8.0 %, chance is 10.0 %."},
        {
            "name": "no gradient masking",
            "passed": not suspicious,
            "said": "Square, which sees no gradient, fools 4.1 points more."
            if suspicious
            else "Square helps by 0.",
        },
        {"name": "norms within budget", "passed": True, "said": "The largest is 0.031373."},
        {"name": "deterministic", "passed": None, "said": "Not checked."},
    ]
    return {
        "name": "standard",
        "suite": "AutoAttack(epsilon=0.03137254901960784, norm=Linf())",
        "norm": "Linf()",
        "epsilon": 8 / 255,
        "epsilon_text": "8/255",
        "split": "test",
        "images": images,
        "seed": 0,
        "precision": "float32",
        "model": "best.ckpt of epoch 3",
        "clean": wilson(clean, images),
        "members": members,
        "robust": wilson(int(standing[-1]), images),
        "gates": gates,
        "suspicious": suspicious,
        "curve": {
            "search": "ClosestBoundary()",
            "norm": "L2()",
            "epsilons": epsilons,
            "accuracy": [one["accuracy"] for one in at],
            "low": [one["low"] for one in at],
            "high": [one["high"] for one in at],
            "median": scale * math.sqrt(math.log(clean / (images / 2))),
            "missing": 3,
            "images": images,
        },
        "provenance": {},
    }


def fake_evaluation(folder, name="standard", content=None, **given):
    """Write the summary of one evaluation into a run folder."""
    place = Path(folder) / "attack" / name
    place.mkdir(parents=True, exist_ok=True)
    text = json.dumps(summary(**given) if content is None else content)
    (place / "summary.json").write_text(text)
    return place
