"""The menu where none is named: the least that a claim about explanation quality should show."""

from lit_xai.attacks.pgd import LinfPGD
from lit_xai.metrics.alignment import Alignment, LinearisedRobustness
from lit_xai.metrics.base import Metric
from lit_xai.metrics.complexity import Entropy, Gini
from lit_xai.metrics.drift import Drift
from lit_xai.metrics.faithfulness import SRG, Perturbation
from lit_xai.metrics.flags import Flags, Misclassified, Missing, Residual
from lit_xai.metrics.grid import GridPointingGame
from lit_xai.metrics.imputation import LinearImputation
from lit_xai.metrics.infidelity import Infidelity
from lit_xai.metrics.neighbourhood import Neighbourhood
from lit_xai.metrics.randomisation import EfficientRandomisation, RandomLogit
from lit_xai.metrics.removal import Blur
from lit_xai.metrics.sensitivity import NeighbourSimilarity, RelativeStability, Sensitivity
from lit_xai.metrics.stability import AttackedStability
from lit_xai.types import Epsilon

BLUR = Blur(kernel=21, sigma=5.0, side=28)  # hides a digit; the published one, scaled down, would not


def credible(epsilon: Epsilon = 8 / 255) -> dict[str, Metric]:
    """Metrics by name: faithfulness, stability, complexity, localisation, randomisation, alignment, drift.

    Per image they cost about 135 forward passes and 21 maps for each method, its own map and one of a mosaic
    of four images among them, and some 90 forward and 15 backward passes for all methods together. A method
    that adds up to something costs up to two passes more. A control costs the same 135 passes, and
    `Untrained` the maps as well. `EfficientRandomisation`, one of the maps, wants asking every tenth epoch
    only (`metrics_every_n_epochs`).

    Args:
        epsilon: The budget that the model should withstand, in pixel units: neighbours are drawn, and
            attacked, within it.
    """
    near, nearer = Neighbourhood(epsilon), Neighbourhood(epsilon / 4)
    return {
        "srg": SRG(steps=20, removal=LinearImputation()),
        "srg_blur": SRG(steps=20, removal=BLUR),
        "perturbation": Perturbation(steps=32, start=BLUR),
        "infidelity": Infidelity(samples=50),
        "stability": Sensitivity(near),
        "stability/relative": RelativeStability(near),
        "stability/similarity": NeighbourSimilarity(near),
        "stability_near": Sensitivity(nearer),
        "stability_near/relative": RelativeStability(nearer),
        "stability_near/similarity": NeighbourSimilarity(nearer),
        "stability_attacked": AttackedStability(LinfPGD(epsilon, steps=10)),
        "gini": Gini(),
        "entropy": Entropy(),
        "input_alignment": Alignment(),
        "linearised_robustness": LinearisedRobustness(competitors=3),
        "grid": GridPointingGame(grid=2),
        "random_logit": RandomLogit(),
        "randomisation_complexity": EfficientRandomisation(),
        "drift": Drift(),
        "flag": Flags(),
        "flag/misclassified": Misclassified(),
        "flag/missing": Missing(),
        "flag/residual": Residual(),
    }
