"""What is said where a method has no meaning for a network."""

from lit_xai.network import Step

WITHOUT_RULES = "Saliency, IntegratedGradients, SmoothGrad, BoundaryIntegratedGradients or NegativeFlux"


def no_rule(method: object, step: Step) -> ValueError:
    """The error for a layer that a method has no rule for."""
    return no_meaning(method, f"has no rule for `{step.layer.name}` (layer {step.name!r})")


def no_meaning(method: object, why: str) -> ValueError:
    """The error for a network that a method cannot explain."""
    name = type(method).__name__
    return ValueError(f"`{name}` {why}: take a method that needs gradients alone, {WITHOUT_RULES}.")
