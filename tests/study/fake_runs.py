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
CONTROLS = ("random_map", "edge_map", "other_image", "untrained")
ALONE = CONTROLS[:2]  # made of no method
# Metrics of a full menu: better, low, high, what chance scores, and the best there is; True: a median.
MENU = {
    "srg/gain": ("higher", -1, 1, 0.0, 0.62),
    "srg/most": ("lower", 0, 1, 0.45, 0.12),
    "srg_blur/gain": ("higher", -1, 1, 0.0, 0.41),
    "road/difference": ("higher", -1, 1, 0.0, 0.35),
    "pixel_flipping/logit": ("lower", None, None, 4.1, 1.2),
    "aopc/probability": ("higher", -1, 1, 0.22, 0.61),
    "irof": ("higher", None, 1, 0.3, 0.72),
    "faithfulness_correlation": ("higher", -1, 1, 0.0, 0.55),
    "infidelity/ninf": ("lower", 0, 1, 0.97, 0.41),
    "sensitivity_n/mean": ("higher", -1, 1, 0.0, 0.48),
    "monotonicity/spearman": ("higher", -1, 1, 0.02, 0.44),
    "stability/max": ("lower", 0, None, 0.9, 0.35),
    "stability/relative/ros_norm": ("lower", None, None, 1.9, 0.7, True),
    "stability/similarity/overlap": ("higher", 0, 1, 0.1, 0.75),
    "stability_attacked/overlap": ("higher", 0, 1, 0.1, 0.66),
    "drift/spearman": (None, -1, 1, 0.0, 0.8),
    "entropy": ("lower", 0, 1, 0.96, 0.81),
    "participation/ratio": ("lower", 0, 1, 0.7, 0.25),
    "total_variation": ("lower", 0, 4, 1.9, 1.0),
    "high_frequency": ("lower", 0, 1, 0.63, 0.31),
    "pointing_game/hit": ("higher", 0, 1, 0.2, 0.86),
    "energy_game/share": ("higher", 0, 1, 0.2, 0.63),
    "relevance_rank/share": ("higher", 0, 1, 0.2, 0.58),
    "grid/share": ("higher", 0, 1, 0.25, 0.71),
    "randomisation/spearman": ("lower", -1, 1, 0.6, 0.08),
    "random_logit/cosine": ("lower", -1, 1, 0.7, -0.1),
    "blind_colour/exactly_zero": ("lower", 0, 1, 0.0, 0.0),
    "colour_sweep/depth": ("lower", 0, 1, 0.4, 0.15),
}
REACH = {"random_map": 0.0, "edge_map": 0.42, "other_image": 0.2, "untrained": 0.1}  # from chance to best
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
    return {key: known_of_menu(key) or known.get(key.rsplit("/", 1)[-1], fact()) for key in keys}


def known_of_menu(key):
    """The facts about a metric of the full menu, its control or its lead."""
    metric = next((metric for metric in MENU if key.endswith(f"/{metric}")), None)
    kind = {"control": "control", "lead": "lead"}.get(key.partition("/")[0])
    if metric is None and kind is None:
        return None
    better, low, high, *_ = MENU.get(metric, (None, None, None))
    median = metric in MENU and len(MENU[metric]) > 5
    plain = fact("higher") if kind == "lead" else fact(better, low, high, median)
    return plain | ({"kind": kind} if kind else {})


def menu_numbers(regime, done, rng):
    """Scores, controls and leads of the full menu."""
    robust = CHARACTER.get(regime, CHARACTER["standard"])[1]
    row = {}
    for metric, (better, _, _, chance, best, *_) in MENU.items():
        scale = 0.015 * (abs(best - chance) or 1.0)
        for control in CONTROLS:
            for name in [""] if control in ALONE else ATTRIBUTIONS:
                value = chance + REACH[control] * (best - chance) * (0.6 + 0.4 * robust)
                head = f"control/{control}/{name}" if name else f"control/{control}"
                row[f"{head}/{metric}"] = float(value + scale * rng.standard_normal())
        for place, name in enumerate(ATTRIBUTIONS):
            skill = done * (0.1 + 0.5 * robust + 0.07 * ((5 * place + len(metric)) % 6))
            value = float(chance + skill * (best - chance) + scale * rng.standard_normal())
            row[f"explain/{name}/{metric}"] = value
            if better:
                lead = (value - row[f"control/random_map/{metric}"]) * (-1 if better == "lower" else 1)
                row[f"lead/{name}/{metric}"] = lead
    return row


def write_samples(path, numbers, count=64):
    """What stands behind the scores of an epoch, in the columns of the callback."""
    columns = ["kind", "attribution", "control", "metric", "quantity", "better", "mean", "sd", "se", "count"]
    columns += ["missing", "mean_correct", "count_correct", "lead", "lead_se", "control_mean"]
    rows = []
    for key, value in numbers.items():
        kind, _, rest = key.partition("/")
        control, _, inner = rest.partition("/") if kind == "control" else ("", "", rest)
        named = inner.startswith(tuple(f"{name}/" for name in ATTRIBUTIONS))
        attribution, _, metric = inner.partition("/") if named else ("", "", inner)
        if kind not in ("explain", "control") or metric.startswith("flag/"):
            continue
        metric, _, quantity = metric.partition("/")
        missing = 0.14 * count if (metric, attribution) == ("irof", "smooth_grad") else 0
        lead = numbers.get(f"lead/{attribution}/{inner.partition('/')[2]}", "")
        chance = numbers.get(f"control/random_map/{inner.partition('/')[2]}", "")
        row = ["score" if kind == "explain" else kind, attribution, control, metric, quantity, "", value]
        sd = 0.2 * abs(value) + 0.02
        row += [sd, sd / count**0.5, count, int(missing), 1.04 * value, count - 3, lead]
        rows.append([*row, sd / count**0.5 if lead != "" else "", chance])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows])


def glyph(digit, rng, side=28):
    """A digit in a soft hand, as pixels in [0, 1]."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    page = Image.new("L", (side, side))
    font = ImageFont.load_default(size=24)
    ImageDraw.Draw(page).text((side / 2, side / 2), str(digit), fill=255, font=font, anchor="mm")
    page = page.rotate(rng.uniform(-12, 12)).filter(ImageFilter.GaussianBlur(0.8))
    return np.asarray(page, dtype=np.float32)[None] / 255


def epoch_numbers(regime, epoch, epochs, rng, full=False):
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
    if full:
        row |= menu_numbers(regime, done, rng)
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


def fake_run(folder, regime="standard", seed=0, epochs=10, state="finished", images=8, stop=None, full=False):
    """One run folder; `stop` ends it early, `full` adds a full menu of metrics with all controls."""
    rng = np.random.default_rng([seed, *map(ord, regime)])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done = epochs if stop is None else stop
    rows = []
    for epoch in range(done):
        numbers = epoch_numbers(regime, epoch, epochs, rng, full)
        head = {"epoch": epoch, "step": 141 * (epoch + 1) - 1}
        training = {key: value for key, value in numbers.items() if key.startswith("train/")}
        rows += [head | training, head | {k: v for k, v in numbers.items() if k not in training}]
    if rows:
        write_metrics(folder / "metrics.csv", rows)
        (folder / "quantities.json").write_text(json.dumps(facts(set().union(*rows) - {"epoch", "step"})))
        for epoch in {0, done - 1}:
            write_maps(folder / f"explanations/epoch_{epoch:03d}.npz", regime, images, rng)
        if full:
            write_samples(folder / f"explanations/epoch_{done - 1:03d}.csv", numbers)
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
