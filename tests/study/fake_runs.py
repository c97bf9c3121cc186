"""Run folders as `lit-xai fit` leaves them: all its keys, numbers drawn from a seed."""

import csv
import json
import math
from pathlib import Path

import numpy as np

ATTRIBUTIONS = (
    "saliency",
    "input_x_gradient",
    "integrated_gradients",
    "smooth_grad",
    "boundary_saliency",
    "boundary_integrated_gradients",
)
CONTROL = "random_map"
LAYERS = ("0", "3", "6", "head")
#          clean  robust distance lead  cosine
CHARACTER = {
    "standard": (0.975, 0.42, 1.35, 0.10, 0.71),
    "adversarial": (0.962, 0.81, 2.10, 0.21, 0.78),
    "smoothed": (0.968, 0.63, 1.75, 0.17, 0.88),
    "bort": (0.955, 0.52, 1.50, 0.19, 0.74),
}


def fact(better=None, low=None, high=None, median=False):
    return {"better": better, "low": low, "high": high, "median": median}


def facts(keys):
    known = {
        "accuracy": fact("higher", 0.0, 1.0),
        "distance": fact("higher", 0.0, None, True),
        "deletion": fact("lower", 0.0, 1.0),
        "insertion": fact("higher", 0.0, 1.0),
        "difference": fact("higher", -1.0, 1.0),
        "gini": fact(None, 0.0, 1.0),
        "cosine": fact("higher", -1.0, 1.0),
        "raw": fact("lower", 0.0, None),
        "relative": fact("lower", 0.0, None),
        "lam_hat": fact("lower", 0.0, None, True),
        "kappa": fact(None, 0.0, None, True),
        "zero": fact("lower", 0.0, 1.0),
        "nonfinite": fact("lower", 0.0, 1.0),
        "missing": fact("lower", 0.0, 1.0),
        "loss": fact("lower", 0.0, None),
        "residual": fact("lower", 0.0, None),
    }
    return {key: known.get(key.rsplit("/", 1)[-1], fact()) for key in keys}


def glyph(digit, rng, side=28):
    """A digit in a soft hand, as pixels in [0, 1]."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    page = Image.new("L", (side, side))
    font = ImageFont.load_default(size=24)
    ImageDraw.Draw(page).text((side / 2, side / 2), str(digit), fill=255, font=font, anchor="mm")
    page = page.rotate(rng.uniform(-12, 12)).filter(ImageFilter.GaussianBlur(0.8))
    return np.asarray(page, dtype=np.float32)[None] / 255


def epoch_numbers(regime, epoch, epochs, rng):
    clean, robust, distance, lead, cosine = CHARACTER.get(regime, CHARACTER["standard"])
    done = 1 - math.exp(-3.2 * (epoch + 1) / epochs)

    def noisy(value, scale):
        return float(value + scale * rng.standard_normal())

    row = {
        "train/loss": abs(noisy(2.3 * math.exp(-3 * (epoch + 1) / epochs), 0.02)),
        "val/loss": abs(noisy(2.2 * math.exp(-2.6 * (epoch + 1) / epochs) + 0.1, 0.02)),
        "val/accuracy": min(1.0, noisy(0.55 + (clean - 0.55) * done, 0.004)),
        "robust/pgd/accuracy": min(1.0, max(0.0, noisy(0.2 + (robust - 0.2) * done, 0.015))),
        "robust/boundary/distance": noisy(0.6 + (distance - 0.6) * done, 0.03),
    }
    for place, name in enumerate((*ATTRIBUTIONS, CONTROL)):
        extra = 0.0 if name == CONTROL else lead * (0.7 + 0.1 * place) * done
        insertion, deletion = noisy(0.42 + extra / 2, 0.008), noisy(0.40 - extra / 2, 0.008)
        row[f"explain/{name}/perturbation/deletion"] = deletion
        row[f"explain/{name}/perturbation/insertion"] = insertion
        row[f"explain/{name}/perturbation/difference"] = insertion - deletion
        row[f"explain/{name}/gini"] = noisy(0.33 if name == CONTROL else 0.45 + 0.15 * done, 0.006)
        row[f"explain/{name}/flag/zero"] = 0.0
        row[f"explain/{name}/flag/nonfinite"] = 0.0
        if name.startswith("boundary"):
            row[f"explain/{name}/closeness/cosine"] = noisy(0.5 + (cosine - 0.5) * done, 0.01)
            row[f"explain/{name}/closeness/raw"] = abs(noisy(3.5 - 2 * robust, 0.1))
            row[f"explain/{name}/closeness/relative"] = abs(noisy(0.9 - 0.5 * cosine, 0.02))
            row[f"explain/{name}/closeness/lam_hat"] = abs(noisy(6 - 4 * robust, 0.2))
            row[f"explain/{name}/closeness/kappa"] = abs(noisy(1.3, 0.05))
            row[f"explain/{name}/flag/missing"] = 0.02 if regime != "adversarial" else 0.08
    if regime == "bort":
        for depth, layer in enumerate(LAYERS):
            row[f"bort/{layer}/residual"] = abs(noisy((depth + 1) * 0.8 * math.exp(-3 * done) + 0.01, 0.004))
    return row


def write_metrics(path, rows):
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in ("epoch", "step")))
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["epoch", "step", *keys], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_maps(path, regime, images, rng, seed_keys=()):
    inputs = np.stack([glyph(digit, np.random.default_rng(digit)) for digit in range(images)])
    robust = CHARACTER.get(regime, CHARACTER["standard"])[1]
    arrays = {
        "inputs": inputs,
        "target": np.arange(images),
        "ids": np.arange(images) * 37 + 5,
        "prediction": np.where(rng.random(images) < 0.85, np.arange(images), (np.arange(images) + 3) % 10),
        "probe_ids": np.arange(64),
    }
    edge = np.gradient(inputs, axis=(2, 3))
    for place, name in enumerate((*ATTRIBUTIONS, CONTROL)):
        noise = rng.standard_normal(inputs.shape)
        shape = edge[place % 2] * np.sign(edge[0] + 0.1) + (0.8 * inputs if place % 3 == 2 else 0.2 * inputs)
        strength = 0.0 if name == CONTROL else robust
        arrays[f"maps/{name}"] = ((strength * shape * 4 + (1 - strength) * 0.6 * noise) * 0.03).astype("f4")
    arrays["maps/saliency"][min(2, images - 1)] = 0.0
    arrays["maps/boundary_saliency"][min(1, images - 1)] = np.nan
    for key in seed_keys:
        arrays[f"scores/{key}"] = rng.random(64).astype("f4")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def fake_run(folder, regime="standard", seed=0, epochs=10, state="finished", images=8, stop=None):
    """One run folder; `stop` ends it early."""
    rng = np.random.default_rng([seed, *map(ord, regime)])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done = epochs if stop is None else stop
    rows = []
    for epoch in range(done):
        numbers = epoch_numbers(regime, epoch, epochs, rng)
        head = {"epoch": epoch, "step": 141 * (epoch + 1) - 1}
        training = {key: value for key, value in numbers.items() if key.startswith("train/")}
        rows += [head | training, head | {k: v for k, v in numbers.items() if k not in training}]
    if rows:
        write_metrics(folder / "metrics.csv", rows)
        (folder / "quantities.json").write_text(json.dumps(facts(set().union(*rows) - {"epoch", "step"})))
        for epoch in {0, done - 1}:
            write_maps(folder / f"explanations/epoch_{epoch:03d}.npz", regime, images, rng)
    seconds = {"adversarial": 88.0, "bort": 41.0}.get(regime, 36.0) + seed
    status = {"state": state, "epoch": done, "epochs": epochs, "seconds": seconds, "error": None}
    if state == "failed":
        status["error"] = "RuntimeError: the loss is not finite (nan) in epoch 3"
    (folder / "status.json").write_text(json.dumps(status))
    provenance = {
        "versions": {"lit_xai": "0.1.0", "torch": "2.15.0", "lightning": "2.6.6", "python": "3.11.7"},
        "machine": {"system": "Linux 6.1 x86_64", "cpu": "2 cores", "threads": 1, "devices": ["cpu"]},
        "git": {"commit": "13cbb8e0a3", "dirty": False},
        "seed": seed,
        "command": f"lit-xai fit --config configs/quickstart.yaml --config configs/regimes/{regime}.yaml "
        f"--seed_everything {seed} --out {folder} --resume true",
        "started": f"2025-06-03T10:{10 + seed:02d}:00+00:00",
        "finished": f"2025-06-03T10:{12 + seed:02d}:04+00:00",
        "seconds": seconds,
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    objective = {
        "standard": "lit_xai.objectives.CrossEntropy",
        "bort": "lit_xai.objectives.CrossEntropy",
        "adversarial": "lit_xai.objectives.AdversarialTraining",
        "smoothed": "lit_xai.objectives.GaussianAugmentation",
    }.get(regime, "lit_xai.objectives.CrossEntropy")
    optimizer = "lit_xai.optim.BortSGD" if regime == "bort" else "torch.optim.SGD"
    (folder / "config.yaml").write_text(
        f"seed_everything: {seed}\nout: {folder}\ntrainer:\n  max_epochs: {epochs}\n  accelerator: cpu\n"
        f"model:\n  net:\n    class_path: lit_xai.models.SmallCNN\n    init_args:\n      width: 16\n"
        f"  objective:\n    class_path: {objective}\n  optimizer:\n    class_path: {optimizer}\n"
        f"    init_args:\n      lr: 0.05\n      momentum: 0.9\n"
    )
    (folder / "study.json").write_text(json.dumps({"regime": regime, "seed": seed}))
    if regime == "smoothed" and state == "finished":
        radii = np.where(rng.random(200) < 0.93, np.abs(rng.normal(0.7, 0.25, 200)), 0.0)
        lines = [f"{i}\t7\t7\t{radius!r}\t{int(radius > 0)}" for i, radius in enumerate(radii.tolist())]
        (folder / "certificates.tsv").write_text(
            "idx\tlabel\tpredict\tradius\tcorrect\n" + "\n".join(lines) + "\n"
        )
    return folder


def fake_study(out, regimes=tuple(CHARACTER), seeds=(0, 1), **run):
    """A folder per regime and seed, in the order of a plan."""
    return [
        fake_run(Path(out) / f"{regime}-seed{seed}", regime, seed, **run)
        for seed in seeds
        for regime in regimes
    ]
