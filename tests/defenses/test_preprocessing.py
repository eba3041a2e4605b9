"""Filters against what they are defined to do, and the attack that goes through them."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.attacks.engine import evaluate
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.search import input_gradient
from auditorch.attacks.threat import Threat
from auditorch.defenses.preprocessing import BitDepth, Jpeg, Median, Preprocessed, TotalVariation
from PIL import Image
from scipy.ndimage import median_filter
from torch import Tensor, nn

FILTERS = [Jpeg(50), BitDepth(3), Median(3), TotalVariation(0.1)]


def images(n: int = 4, c: int = 1) -> Tensor:
    return torch.rand(n, c, 8, 8, generator=torch.Generator().manual_seed(0))


def test_bits_leave_so_many_levels() -> None:
    x = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    out = BitDepth(3)(x)
    assert torch.allclose(out.unique(), torch.arange(8) / 7)
    assert float((out - x).abs().max()) <= 0.5 / 7 + 1e-6


def test_jpeg_is_that_of_pillow() -> None:
    smooth = torch.linspace(0, 1, 16)[None, :] * torch.linspace(1, 0.2, 16)[:, None]
    x = (smooth + 0.1 * torch.rand(16, 16, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    x = (x * 255).round() / 255
    file = io.BytesIO()
    Image.fromarray((x * 255).byte().numpy()).save(file, "jpeg", quality=40)
    theirs = torch.from_numpy(np.asarray(Image.open(file)).astype(np.float32)) / 255
    ours = Jpeg(40)(x[None, None])[0, 0]
    assert float((ours - theirs).abs().mean()) < 1 / 255
    assert float((ours - x).abs().mean()) > 2 / 255


@pytest.mark.parametrize("size", [3, 5])
def test_median_is_that_of_scipy(size: int) -> None:
    x = images(2, 3)
    expected = median_filter(x.numpy(), size=(1, 1, size, size), mode="mirror")
    assert np.array_equal(Median(size)(x).numpy(), expected)


def test_total_variation_minimises_its_objective() -> None:
    """Against plain gradient descent on the objective itself, and against images around the answer."""
    x, weight = images(1).double(), 0.15

    def objective(z: Tensor) -> Tensor:
        down = torch.nn.functional.pad(z.diff(dim=2), (0, 0, 0, 1))
        right = torch.nn.functional.pad(z.diff(dim=3), (0, 1))
        return (z - x).square().sum() / 2 + weight * (down.square() + right.square() + 1e-10).sqrt().sum()

    found = TotalVariation(weight, steps=800)(x)
    z = x.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([z], max_iter=400, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(z)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(objective(found)) <= float(objective(z.detach())) + 5e-3
    assert float(objective(found)) < 0.8 * float(objective(x))
    assert float(objective(TotalVariation(weight)(x))) < float(objective(found)) * 1.05, "30 steps come near"


@pytest.mark.parametrize("step", FILTERS, ids=lambda step: type(step).__name__)
def test_the_forward_pass_is_exact_and_the_gradient_useful(step: Any) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    module, x = Preprocessed(body, (step,)), images()
    with torch.no_grad():
        assert torch.equal(module(x), body(step(x)))
        assert torch.allclose(module(x[1:2]), module(x)[1:2], atol=1e-6)
    _, _, gradient = input_gradient(module, x, lambda logits: logits[:, 0] - logits[:, 1])
    assert bool((gradient.flatten(1).norm(dim=1) > 0).all())
    with torch.no_grad():
        z = step(x + 0.2 * gradient.sign())
        rise = (body(z)[:, 0] - body(z)[:, 1]) - (body(step(x))[:, 0] - body(step(x))[:, 1])
    assert (rise > 0).all(), "a step along the gradient raises what it is the gradient of"


def test_filters_see_images_in_0_to_1_whatever_the_bounds() -> None:
    body = nn.Flatten()
    x = images()
    plain = Preprocessed(body, (BitDepth(2),))(x)
    scaled = Preprocessed(body, (BitDepth(2),), bounds=(-1, 3))(4 * x - 1)
    assert torch.allclose(scaled, 4 * plain - 1, atol=1e-6)


def test_bpda_breaks_what_a_plain_gradient_cannot() -> None:
    """Rounding has no gradient of its own: without the approximation the attack finds nothing."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    module, x = Preprocessed(body, (BitDepth(4),)), images(16)
    with torch.no_grad():
        y = module(x).argmax(1)
    outcome = evaluate(PGD(steps=20), module, x, y, Threat("linf", 0.1))
    assert outcome.robust_accuracy < 0.3


@pytest.mark.parametrize(
    "make",
    [lambda: Jpeg(0), lambda: BitDepth(9), lambda: Median(1), lambda: TotalVariation(0.0)],
)
def test_nonsense_is_refused(make: Any) -> None:
    with pytest.raises(UnsupportedError):
        make()
    with pytest.raises(UnsupportedError, match="need images"):
        Preprocessed(nn.Flatten(), (BitDepth(2),))(torch.rand(2, 5))
