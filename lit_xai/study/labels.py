"""Log keys in words, and the families that metrics of explanations belong to."""

FAMILIES = {  # by what a metric's name begins with
    "Faithfulness": (
        *("perturbation", "srg", "road", "pixel_flipping", "aopc", "irof", "faithfulness", "infidelity"),
        *("ninf", "sensitivity_n", "monotonicity", "apop", "residual", "completeness", "conservation"),
    ),
    "Stability": (
        *("stability", "sensitivity", "local_lipschitz", "relative_stability", "neighbour_similarity"),
        *("attacked", "manipulability", "baseline", "seed", "drift"),
    ),
    "Complexity": ("gini", "entropy", "participation", "total_variation", "variation", "high_frequency"),
    "Localisation": (
        *("pointing", "energy", "rank", "relevance_rank", "relevance_mass", "top_k", "grid"),
        *("boundary_localisation", "localisation"),
    ),
    "Randomisation": (
        *("randomisation", "model_randomisation", "smooth_randomisation", "efficient_randomisation"),
        "random_logit",
    ),
    "Alignment": (
        "alignment",
        "input_alignment",
        "linearised_robustness",
        "gradient_norm",
        "curvature",
        "closeness",
    ),
    "Input bias": ("input_bias", "blind_colour", "reparameterisation", "polarity", "colour_sweep"),
}
OTHER = "Other"
NAMES = {
    "train/loss": "Training loss",
    "val/accuracy": "Clean accuracy",
    "test/accuracy": "Test accuracy",
    "certified/average_radius": "Average certified radius",
    "certified/abstained": "Abstentions",
    "val/loss": "Validation loss",
    "robust/pgd/accuracy": "Robust accuracy (PGD)",
    "robust/boundary/distance": "Boundary distance",
    "robust/boundary/found": "Boundary found",
    "robust/boundary/opt": "Optimality of boundary points",
    "robust/boundary/over": "Overshoot of boundary points",
    "robust/fgsm/accuracy": "Robust accuracy (one step)",
    "robust/masking/cosine": "One step against many, cosine",
    "robust/masking/zero": "Zero input gradients",
    "robust/alignment": "Gradient alignment in the ball, cosine",
    "guard/collapse": "Collapse of robustness",
    "perturbation/deletion": "Deletion",
    "perturbation/insertion": "Insertion",
    "perturbation/difference": "Difference game",
    "srg": "SRG",
    "srg/gain": "SRG",
    "srg/relative": "SRG, relative",
    "srg/most": "SRG, most salient first",
    "srg/least": "SRG, least salient first",
    "road": "ROAD",
    "road/most": "ROAD, most salient first",
    "road/least": "ROAD, least salient first",
    "pixel_flipping": "Pixel flipping",
    "aopc": "AOPC",
    "irof": "IROF",
    "faithfulness_correlation": "Faithfulness correlation",
    "faithfulness_estimate": "Faithfulness estimate",
    "infidelity": "Infidelity",
    "infidelity/infidelity": "Infidelity",
    "infidelity/ninf": "Infidelity, normalised",
    "ninf": "Infidelity, normalised",
    "sensitivity_n": "Sensitivity-n",
    "monotonicity": "Monotonicity",
    "patterns/accuracy": "APOP accuracy",
    "patterns/shuffled": "APOP accuracy, patterns shuffled",
    "stability/max": "Max-sensitivity",
    "stability/mean": "Average sensitivity",
    "stability/lipschitz": "Local Lipschitz constant",
    "stability/relative/ris": "Relative input stability, log",
    "stability/relative/ros": "Relative output stability, log",
    "stability/relative/ris_norm": "Relative input stability of norms, log",
    "stability/relative/ros_norm": "Relative output stability of norms, log",
    "stability/relative/kept": "Neighbours that keep their class",
    "stability/similarity/overlap": "Similarity to neighbours, top-k",
    "stability/similarity/spearman": "Similarity to neighbours, spearman",
    "stability/similarity/ssim": "Similarity to neighbours, SSIM",
    "stability_attacked": "Stability under attack",
    "stability_attacked/overlap": "Stability under attack, top-k",
    "stability_attacked/ssim": "Stability under attack, SSIM",
    "sensitivity/max": "Max-sensitivity",
    "sensitivity/mean": "Average sensitivity",
    "manipulability": "Resistance to manipulation",
    "manipulability/overlap": "Resistance to manipulation, top-k",
    "baseline_sensitivity": "Baseline sensitivity",
    "seed_sensitivity": "Sensitivity to search seeds",
    "drift": "Same as an epoch ago",
    "drift/overlap": "Same as an epoch ago, top-k",
    "gini": "Gini index",
    "entropy": "Entropy",
    "participation": "Participation ratio",
    "participation/ratio": "Participation ratio",
    "participation/core": "Pixels that carry 90 %",
    "total_variation": "Total variation",
    "variation": "Total variation",
    "high_frequency": "High-frequency share",
    "pointing": "Pointing game",
    "pointing/hit": "Pointing game",
    "pointing_game": "Pointing game",
    "pointing_game/hit": "Pointing game",
    "energy": "Energy game",
    "energy/share": "Energy game",
    "energy_game": "Energy game",
    "energy_game/share": "Energy game",
    "rank": "Relevance rank",
    "rank/share": "Relevance rank",
    "relevance_rank": "Relevance rank",
    "relevance_rank/share": "Relevance rank",
    "top_k": "Top-k in the object",
    "top_k/share": "Top-k in the object",
    "grid": "Grid pointing game",
    "grid/share": "Grid pointing game",
    "boundary_localisation/loc": "Localisation, counts",
    "boundary_localisation/energy": "Localisation, energy",
    "boundary_localisation/positive": "Localisation, positive share",
    "boundary_localisation/concentration": "Localisation, concentration",
    "randomisation": "Randomised layers",
    "smooth_randomisation": "Randomised layers, smoothed",
    "randomisation_complexity": "Entropy gained by random weights",
    "random_logit": "Map of another class",
    "input_alignment/alpha": "Alignment with the image, alpha",
    "input_alignment/cosine": "Alignment with the image, cosine",
    "input_alignment/cosine_loss": "Alignment of the loss gradient, cosine",
    "linearised_robustness": "Linearised robustness",
    "gradient_norm": "Input gradient",
    "curvature": "Curvature",
    "confidence/probability": "Confidence",
    "confidence/margin": "Confidence, margin",
    "misclassified": "Misclassified images",
    "blind_colour": "Blind colour",
    "polarity": "Polarity",
    "colour_sweep": "Colour sweep",
    "reparameterisation": "Re-parameterised input",
    "reparameterisation/change": "Change under a re-parameterised input",
    "closeness/cosine": "Closeness to its plain twin, cosine",
    "closeness/norm": "Length of the boundary map",
    "closeness/log_kappa": "Linearity of the way to the boundary, log kappa",
    "closeness/raw": "Distance to its plain twin, l2",
    "closeness/relative": "Distance to its plain twin, relative",
    "closeness/lam_hat": "Local Lipschitz constant, lower bound",
    "closeness/kappa": "Linearity of the way to the boundary, kappa",
    "flag/zero": "All-zero maps",
    "flag/nonfinite": "Non-finite maps",
    "explain/samples": "Images explained",
    "flag/failed": "Failed",
    "flag/ties": "Tied pixels",
    "flag/misclassified": "Misclassified images",
    "flag/missing": "Boundary not found",
    "flag/residual": "Off what they should add up to",
    "flag/accepted": "Accepted points of the sphere",
}


def words(name: str) -> str:
    """A key as words: `integrated_gradients` reads `Integrated gradients`."""
    text = name.replace("_", " ").replace("/", ", ")
    return text[:1].upper() + text[1:]


def inline(text: str) -> str:
    """A label inside a sentence: its first letter small, unless it is an abbreviation."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def label(metric: str) -> str:
    """A metric in words: its own name, or that of the metric that it is a variant of.

    `srg_blur/least` reads as `srg/least` does, and names the variant: what begins as a known name is one. A
    metric of the model itself, `robust/…`, is known by its own name too.
    """
    if metric in NAMES:
        return NAMES[metric]
    own = metric.removeprefix("robust/")
    name, _, quantity = own.partition("/")
    for known in starts(name):
        whole = NAMES.get(f"{known}/{quantity}") if quantity else None
        if whole or known in NAMES:
            variant = name[len(known) + 1 :].replace("_", " ")
            shown = (whole or NAMES[known]) + (f" ({variant})" if variant else "")
            said = words(quantity).lower().replace("ssim", "SSIM")
            return shown if whole or not quantity else f"{shown}, {said}"
    return words(metric)


def family(metric: str) -> str:
    """The family of a metric; `OTHER` where its name tells none."""
    begins = {start: name for name, members in FAMILIES.items() for start in members}
    return next((begins[start] for start in starts(metric.partition("/")[0]) if start in begins), OTHER)


def place(metric: str) -> int:
    """Where a metric's family stands among the families."""
    return [*FAMILIES, OTHER].index(family(metric))


def starts(name: str) -> list[str]:
    """A name and what it begins with, the longest first: `a_b_c`, `a_b`, `a`."""
    parts = name.split("_")
    return ["_".join(parts[:count]) for count in range(len(parts), 0, -1)]
