"""Explaining is observing: a model is looked at, and is afterwards what it was before, bit for bit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attributions.base import Attribution
from lit_xai.memory import once, remembering
from lit_xai.metrics.base import Metric
from lit_xai.types import Images, Labels, Masks, Scores

MODEL = ""  # the name under which metrics of the model itself stand beside those of its attributions


@contextmanager
def observing(model: nn.Module, seed: int) -> Iterator[nn.Module]:
    """Look at a model without leaving a trace.

    Inside: eval mode, frozen parameters, gradients on, inference mode off, float32 without autocast, eager
    even if compiled, the global random state forked and seeded. On exit, also after an error, all is as it
    was, module by module: a submodule that was frozen in eval mode stays so.

    Args:
        model: The network, unwrapped (not its DDP wrapper).
        seed: Seeds the forked random state.
    """
    modes = [(module, module.training) for module in model.modules()]
    frozen = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    devices = list({tensor.device for tensor in model.parameters() if tensor.is_cuda})
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cuda" if devices else "cpu", enabled=False),
            torch.random.fork_rng(devices),
            torch.compiler.set_stance("force_eager"),
            _full_precision(bool(devices)),
        ):
            for module, _ in modes:
                module.training = False
            for parameter, _ in frozen:
                parameter.requires_grad_(False)
            torch.default_generator.manual_seed(seed)  # the forked ones, and no other device's
            for device in devices:
                torch.cuda.default_generators[device.index].manual_seed(seed)
            yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in frozen:
            parameter.requires_grad_(requires_grad)


@contextmanager
def _full_precision(needed: bool) -> Iterator[None]:
    """Have an accelerator compute in float32, not in the 10 bits of TF32: boundaries show the difference."""
    if not needed:
        yield
        return
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


@dataclass(frozen=True)
class Explanation:
    """What `explain` saw in one batch.

    Args:
        maps: One map per image, by attribution.
        scores: One score per image, by attribution, metric and quantity. Metrics of the model itself stand
            under the attribution `MODEL`.
    """

    maps: dict[str, Images] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, Scores]]] = field(default_factory=dict)

    def flat(self) -> dict[str, Scores]:
        """The scores by log key, `explain/<attribution>/<metric>[/<quantity>]` or `robust/<metric>/…`."""
        return {
            log_key(attribution, metric, quantity): scores
            for attribution, metrics in self.scores.items()
            for metric, quantities in metrics.items()
            for quantity, scores in quantities.items()
        }


def log_key(attribution: str, metric: str, quantity: str) -> str:
    """The name under which a quantity is logged, plotted and tabulated."""
    head = ("explain", attribution) if attribution else ("robust",)
    return "/".join((*head, metric, *((quantity,) if quantity else ())))


def explain(
    model: nn.Module,
    inputs: Images,
    target: Labels,
    attributions: Mapping[str, Attribution],
    metrics: Mapping[str, Metric],
    seed: int,
    ids: Int[Tensor, " batch"] | None = None,
    mask: Masks | None = None,
) -> Explanation:
    """Explain one batch with every attribution, and score each map with every metric that applies to it.

    The one code path of the callbacks and of `lit-xai explain`. What is asked for twice is computed once: a
    search that several maps and metrics are built on, a plain map that a boundary map is compared with.

    Args:
        model: The network, unwrapped.
        inputs: Pixels in [0, 1].
        target: The class to explain, per image.
        attributions: Methods by name.
        metrics: Metrics by name; only their `score` is used, nothing is accumulated in them.
        seed: With `ids`, fixes every random draw.
        ids: Names the samples; their position in the batch by default.
        mask: The object's pixels, for metrics that need them.
    """
    seen = Explanation()
    with observing(model, seed), remembering():
        # Tensors of inference mode cannot enter autograd: copies can.
        inputs, target = inputs.detach().clone(), target.clone()
        ids = torch.arange(len(inputs), device=inputs.device) if ids is None else ids.clone()
        batch = {"model": model, "inputs": inputs, "target": target, "mask": mask}
        with randomness.keyed(seed, ids):
            own = {name: metric for name, metric in metrics.items() if about_model(metric)}
            seen.scores[MODEL] = {name: metric.named(**batch) for name, metric in own.items()}
            for name, attribution in attributions.items():
                maps = once(attribution, model, inputs, target, partial(attribution, model, inputs, target))
                maps = maps.detach()
                seen.maps[name] = maps
                given = batch | {"attributions": maps, "attribution": attribution}
                seen.scores[name] = {
                    key: metric.named(**given)
                    for key, metric in metrics.items()
                    if not about_model(metric) and metric.applies(attribution)
                }
    return seen


def about_model(metric: Metric) -> bool:
    """Whether a metric asks for no attribution, and so says something about the model alone."""
    return not {"attribution", "attributions"} & set(metric.needs)
