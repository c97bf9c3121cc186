"""Explaining is observing: a model is looked at, and is afterwards what it was before, bit for bit."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attributions.base import Attribution
from lit_xai.memory import remembering
from lit_xai.metrics.base import Metric, Saliency
from lit_xai.metrics.companions import Companions
from lit_xai.metrics.controls import Borrowed, scorable
from lit_xai.metrics.shared import maps_of
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
        controls: The same for maps that know nothing of what they explain, by control and attribution; a
            control that is made of no method stands under `MODEL`.
        failed: What went wrong, by attribution, `control/<control>[/<attribution>]`, or either followed by
            `/<metric>`; their scores are NaN.
    """

    maps: dict[str, Images] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, Scores]]] = field(default_factory=dict)
    controls: dict[str, dict[str, dict[str, dict[str, Scores]]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def flat(self) -> dict[str, Scores]:
        """The scores by log key, see `log_key`."""
        return {
            log_key(attribution, metric, quantity, control): scores
            for control, table in (("", self.scores), *self.controls.items())
            for attribution, metrics in table.items()
            for metric, quantities in metrics.items()
            for quantity, scores in quantities.items()
        }


def log_key(attribution: str, metric: str, quantity: str, control: str = "") -> str:
    """The name under which a quantity is logged, plotted and tabulated.

    `explain/<attribution>/<metric>[/<quantity>]`, `robust/<metric>…` for the model itself, and
    `control/<control>[/<attribution>]/<metric>…` for maps that know nothing of what they explain.
    """
    head = ("control", control) if control else ("explain",) if attribution else ("robust",)
    return "/".join(part for part in (*head, attribution, metric, quantity) if part)


def lead_key(attribution: str, metric: str, quantity: str) -> str:
    """The name of a quantity's lead over the random map: `lead/<attribution>/<metric>[/<quantity>]`."""
    return "/".join(part for part in ("lead", attribution, metric, quantity) if part)


def explain(
    model: nn.Module,
    inputs: Images,
    target: Labels,
    attributions: Mapping[str, Attribution],
    metrics: Mapping[str, Metric],
    seed: int,
    ids: Int[Tensor, " batch"] | None = None,
    mask: Masks | None = None,
    *,
    controls: Mapping[str, Attribution] | None = None,
    companions: Companions | None = None,
    previous: Mapping[str, Saliency] | None = None,
    strict: bool = True,
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
        controls: Maps that know nothing, scored in the same pass; a `Borrowed` one is made of each method.
        companions: Other images beside each image, for metrics and controls that need them.
        previous: Maps of the last look, by attribution, for metrics that need them.
        strict: Whether a method or metric that fails ends it all; else it is named in `failed`, its scores
            are NaN, and the others go on.
    """
    seen = Explanation()
    with observing(model, seed), remembering():
        # Tensors of inference mode cannot enter autograd: copies can.
        inputs, target = inputs.detach().clone(), target.clone()
        ids = torch.arange(len(inputs), device=inputs.device) if ids is None else ids.clone()
        mask = None if mask is None else mask.clone()
        if companions is not None:
            others = (companions.images, companions.target, companions.ids)
            companions = Companions(*(column.clone() for column in others))
        batch = {"model": model, "inputs": inputs, "target": target, "mask": mask, "companions": companions}

        def mapped(name: str, attribution: Attribution) -> Images:
            try:
                return maps_of(attribution, model, inputs, target)
            except Exception as error:
                if strict:
                    raise
                seen.failed[name] = f"{type(error).__name__}: {error}"
                return torch.full_like(inputs, torch.nan)

        def scored(name: str, chosen: Iterable[str], **given: Any) -> dict[str, dict[str, Scores]]:
            return {key: column(name, key, given) for key in chosen}

        def column(name: str, key: str, given: Mapping[str, Any]) -> dict[str, Scores]:
            metric = metrics[key]
            try:
                if name not in seen.failed:
                    return metric.named(**batch, **given)
            except Exception as error:
                if strict:
                    raise
                seen.failed[f"{name}/{key}"] = f"{type(error).__name__}: {error}"
            return {quantity: inputs.new_full((len(inputs),), torch.nan) for quantity in metric.quantities}

        with randomness.keyed(seed, ids):
            own = [key for key, metric in metrics.items() if about_model(metric)]
            seen.scores[MODEL] = scored(MODEL, own)
            for name, attribution in attributions.items():
                maps = seen.maps[name] = mapped(name, attribution)
                before = (previous or {}).get(name, torch.full_like(inputs[:, 0], torch.nan)).clone()
                given = {"attributions": maps, "attribution": attribution, "previous": before}
                seen.scores[name] = scored(name, chosen(metrics, attribution), **given)
            for control, attribution, of in made(controls or {}, attributions, companions):
                name = "/".join(part for part in ("control", control, of) if part)
                if names := chosen(metrics, attribution, control=True):
                    given = {"attributions": mapped(name, attribution), "attribution": attribution}
                    seen.controls.setdefault(control, {})[of] = scored(name, names, **given)
    return seen


def made(
    controls: Mapping[str, Attribution],
    attributions: Mapping[str, Attribution],
    companions: Companions | None,
) -> Iterator[tuple[str, Attribution, str]]:
    """Every control with its name, and the name of the method it is made of, if it is made of one."""
    for name, control in controls.items():
        if isinstance(control, Borrowed):
            for of, attribution in attributions.items():
                yield name, control.of(attribution, companions), of
        else:
            yield name, control, MODEL


def chosen(metrics: Mapping[str, Metric], attribution: Attribution, control: bool = False) -> list[str]:
    """Names of the metrics that score this attribution, which may stand for a control."""
    return [
        name
        for name, metric in metrics.items()
        if not about_model(metric)
        and metric.applies(attribution)
        and (not control or scorable(attribution, metric))
    ]


def about_model(metric: Metric) -> bool:
    """Whether a metric asks for no attribution, and so says something about the model alone."""
    return not {"attribution", "attributions"} & set(metric.needs)
