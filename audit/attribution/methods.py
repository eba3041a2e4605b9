"""Attribution methods: how much each input value speaks for a class. Captum does the work."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from captum.attr import DeepLift, InputXGradient, IntegratedGradients, LayerGradCam, Occlusion, Saliency
from torch import Tensor, nn
from torch.nn import functional

from ...attacks.errors import UnsupportedError
from ...attacks.streams import Streams
from .baselines import BaselineName, make_baseline
from .borrow import explaining
from .layers import grad_cam_layer, map_size

Method = Literal[
    "integrated_gradients", "saliency", "grad_cam", "occlusion", "input_x_gradient", "gradient_shap", "deep_lift"
]
METHODS: tuple[Method, ...] = get_args(Method)
LABELS: dict[Method | Literal["random"], str] = {
    "integrated_gradients": "Integrated Gradients",
    "saliency": "Saliency",
    "grad_cam": "Grad-CAM",
    "occlusion": "Occlusion",
    "input_x_gradient": "Input x gradient",
    "gradient_shap": "GradientShap",
    "deep_lift": "DeepLift",
    "random": "Random",
}


@dataclass(frozen=True, slots=True)
class _Job:
    """One attribution to make: inputs and baseline ``(n, c, h, w)``, classes ``(n,)``, streams of the samples."""

    module: nn.Module
    x: Tensor
    targets: Tensor
    baseline: Tensor
    streams: Streams
    steps: int
    layer: str
    window: int
    grid: tuple[int, int]
    rows: int

    def slice(self, part: slice) -> _Job:
        return replace(
            self,
            x=self.x[part],
            targets=self.targets[part],
            baseline=self.baseline[part],
            streams=Streams(self.streams.keys[part], self.streams.counter[part]),
        )


def attribute(
    method: Method | Literal["random"],
    module: nn.Module,
    x: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor | BaselineName = "zero",
    bounds: tuple[float, float] = (0.0, 1.0),
    steps: int = 32,
    layer: str | None = None,
    window: int | None = None,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    internal_batch_size: int = 256,
) -> Tensor:
    """Attributions ``(n, c, h, w)`` of the logits of ``targets``: positive where a value speaks for the class.

    ``integrated_gradients`` (arXiv 1703.01365), ``saliency`` (absolute gradient, arXiv 1312.6034), ``grad_cam``
    (arXiv 1610.02391, with its ReLU, upsampled bilinearly to the input), ``occlusion`` (arXiv 1311.2901),
    ``input_x_gradient`` (arXiv 1605.01713), ``gradient_shap`` (expected gradients between baseline and input,
    arXiv 1705.07874), ``deep_lift`` (rescale rule, arXiv 1704.02685; it knows only activations that are modules
    of their own, each used once), and ``random``, noise that knows nothing of the model. Grad-CAM, occlusion and
    random give one value per pixel, shared equally among its channels, so that the sum over channels is the map.

    The module is given back as found. Results do not depend on how many samples or rows go together, except through
    floating point, nor on the global random state.

    Args:
        method: one of :data:`METHODS`, or ``random``.
        module: maps ``(n, c, h, w)`` to logits ``(n, k)``.
        x: float ``(n, c, h, w)`` on the module's device.
        targets: int64 ``(n,)``, the class to explain for each sample.
        baseline: ``(n, c, h, w)``, or the name of one (:func:`~.baselines.make_baseline`).
        bounds: of the input values; used by named baselines.
        steps: points on the path of Integrated Gradients; draws of GradientShap.
        layer: name of Grad-CAM's layer; None: the last convolution.
        window: side of the occluding square in pixels, moved by half its side; None: a quarter of the shorter side.
        grid: resolution of ``random``; None: one value per pixel.
        seed: of ``random`` and ``gradient_shap``.
        ids: int64 ``(n,)``, numbers that stay with the samples and key their random draws; None: their positions.
        internal_batch_size: most rows given to the module at once.

    Raises:
        UnsupportedError: for an unknown method, inputs that are not images, or a model the method cannot read.
    """
    if method not in _METHODS:
        raise UnsupportedError(f"unknown attribution method {method!r}: choose one of {', '.join(METHODS)}")
    if x.dim() != 4:
        raise UnsupportedError(f"attributions of images need inputs (n, c, h, w), not {tuple(x.shape)}")
    x = x.detach()
    job = _Job(
        module=module,
        x=x,
        targets=targets,
        baseline=make_baseline(x, baseline, bounds) if isinstance(baseline, str) else baseline.detach(),
        streams=Streams.from_seed(seed, torch.arange(len(x), device=x.device) if ids is None else ids.to(x.device)),
        steps=steps,
        layer=grad_cam_layer(module, x, layer) if method == "grad_cam" else "",
        window=_window(x, window),
        grid=(x.shape[2], x.shape[3]) if grid is None else grid,
        rows=internal_batch_size,
    )
    together = max(1, internal_batch_size // _rows_per_sample(method, steps))
    with explaining(module), torch.enable_grad():
        parts = [_METHODS[method](job.slice(slice(i, i + together))) for i in range(0, len(x), together)]
    return torch.cat(parts).detach() if parts else torch.zeros_like(x)


def control_grid(
    method: Method, module: nn.Module, x: Tensor, *, layer: str | None = None, window: int | None = None
) -> tuple[int, int]:
    """How finely ``method`` can resolve places in ``x``: the grid on which a fair random control is drawn.

    A control of single pixels would be compared unfairly with coarse maps: single deleted pixels make noise, which
    confuses many models more than deleted regions do.
    """
    h, w = x.shape[2:]
    if method == "grad_cam":
        return map_size(module, x, grad_cam_layer(module, x, layer))
    if method == "occlusion":
        side = _window(x, window)
        return _positions(h, side), _positions(w, side)
    return h, w


def relevance(attributions: Tensor) -> Tensor:
    """One value per pixel ``(n, h, w)``: the sum over channels of attributions ``(n, c, h, w)``."""
    return attributions.sum(1)


def _window(x: Tensor, window: int | None) -> int:
    shorter = min(x.shape[2:])
    return max(1, shorter // 4) if window is None else min(window, shorter)


def _stride(window: int) -> int:
    return math.ceil(window / 2)


def _positions(side: int, window: int) -> int:
    return 1 + math.ceil((side - window) / _stride(window))


def _rows_per_sample(method: str, steps: int) -> int:
    return steps if method in ("integrated_gradients", "gradient_shap") else 2 if method == "deep_lift" else 1


def _integrated_gradients(job: _Job) -> Tensor:
    # Captum splits steps by itself, but warns when not even one step of every sample fits.
    rows = job.rows if job.steps > job.rows else None
    explain = IntegratedGradients(job.module)
    return explain.attribute(job.x, job.baseline, job.targets, n_steps=job.steps, internal_batch_size=rows)


def _saliency(job: _Job) -> Tensor:
    return Saliency(job.module).attribute(job.x.requires_grad_(), job.targets)


def _input_x_gradient(job: _Job) -> Tensor:
    return InputXGradient(job.module).attribute(job.x.requires_grad_(), job.targets)


def _gradient_shap(job: _Job) -> Tensor:
    """Captum's GradientShap draws from the global random state, so only its gradient is Captum's here."""
    n, shape = len(job.x), job.x.shape[1:]
    change = job.x - job.baseline
    at = job.streams.uniform((job.steps,)).to(job.x).view(n, job.steps, 1, 1, 1)
    points = (job.baseline[:, None] + at * change[:, None]).reshape(-1, *shape)
    targets = job.targets.repeat_interleave(job.steps)
    gradients = [
        Saliency(job.module).attribute(part.requires_grad_(), target, abs=False)
        for part, target in zip(points.split(job.rows), targets.split(job.rows), strict=True)
    ]
    return change * torch.cat(gradients).view(n, job.steps, *shape).mean(1)


def _deep_lift(job: _Job) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting forward, backward hooks")
        try:
            return DeepLift(job.module).attribute(job.x.requires_grad_(), job.baseline, job.targets)
        except (AssertionError, AttributeError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UnsupportedError(
                f"DeepLift cannot read this model ({error}): it needs each activation as a module of its own, "
                "used once; choose integrated_gradients"
            ) from error


def _grad_cam(job: _Job) -> Tensor:
    explain = LayerGradCam(job.module, job.module.get_submodule(job.layer))
    # Inputs must carry gradients: with frozen parameters nothing else would connect layer and output.
    coarse = explain.attribute(job.x.requires_grad_(), job.targets, relu_attributions=True)
    assert isinstance(coarse, Tensor)
    return _spread(coarse, job.x)


def _occlusion(job: _Job) -> Tensor:
    c, window, stride = job.x.shape[1], job.window, _stride(job.window)
    explain = Occlusion(job.module)
    with torch.no_grad():
        effect = explain.attribute(
            job.x,
            sliding_window_shapes=(c, window, window),
            strides=(c, stride, stride),
            baselines=job.baseline,
            target=job.targets,
            perturbations_per_eval=max(1, job.rows // len(job.x)),
        )
    return effect / c


def _random(job: _Job) -> Tensor:
    return _spread(job.streams.normal((1, *job.grid)).to(job.x), job.x)


def _spread(coarse: Tensor, x: Tensor) -> Tensor:
    """A coarse map ``(n, 1, gh, gw)`` at the size of ``x``, shared equally among the channels."""
    c, h, w = x.shape[1:]
    fine = coarse if coarse.shape[2:] == (h, w) else functional.interpolate(coarse, (h, w), mode="bilinear")
    return (fine / c).expand(-1, c, -1, -1)


_METHODS: dict[str, Callable[[_Job], Tensor]] = {
    "integrated_gradients": _integrated_gradients,
    "saliency": _saliency,
    "grad_cam": _grad_cam,
    "occlusion": _occlusion,
    "input_x_gradient": _input_x_gradient,
    "gradient_shap": _gradient_shap,
    "deep_lift": _deep_lift,
    "random": _random,
}
