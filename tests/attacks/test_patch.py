"""Adversarial patches: a planted detector is fooled, geometry is as stated, placement is repeatable."""

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.streams import Streams
from auditorch.attacks.universal.patch import AdversarialPatch, Patch, apply
from torch import Tensor, nn
from torch.nn import functional


class EdgeDetector(nn.Module):
    """Class 1 where an upright edge leads from black to white, anywhere; class 0 otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.tensor([[-1.0, -1.0, 1.0, 1.0]]).repeat(4, 1).view(1, 1, 4, 4) / 8)

    def forward(self, x: Tensor) -> Tensor:
        found = (20 * functional.conv2d(x, self.kernel)).flatten(1).logsumexp(1) / 20 - 0.6
        return torch.stack([torch.zeros_like(found), 20 * found], 1)


def grey(n: int = 24, side: int = 16) -> Tensor:
    return 0.45 + 0.1 * torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("targeted", [False, True])
def test_a_detector_of_a_pattern_is_fooled_on_images_not_seen(targeted: bool) -> None:
    model, x = EdgeDetector(), grey(60)
    assert (model(x).argmax(1) == 0).all()
    attack = AdversarialPatch(size=0.4, steps=60, rotation=5, scales=(1.0, 1.0), shape="square", batch_size=16)
    y = torch.full((30,), int(targeted))
    patch = attack.fit(model, x[:30], y, targeted=targeted)
    noise = Patch(
        torch.rand(patch.pattern.shape, generator=torch.Generator().manual_seed(1)), patch.mask, 0.4, 5, (1, 1)
    )
    placed = Streams.from_seed(7, torch.arange(30))
    with torch.no_grad():
        hit, control = (
            float(model(apply(p, x[30:], placed.fork(1))).argmax(1).double().mean()) for p in (patch, noise)
        )
    assert hit > 0.9
    assert control < 0.5


def test_the_patch_covers_as_much_as_it_says_and_nothing_else() -> None:
    x = torch.zeros(50, 3, 20, 30)
    patch = Patch(torch.ones(3, 8, 8), torch.ones(1, 8, 8), 0.4, 0.0, (1.0, 1.0))
    covered = apply(patch, x)
    # A side of 0.4 * 20 = 8 pixels; edges between pixels fade over one pixel, and lose half of it outside.
    assert covered.sum((1, 2, 3)).div(3).tolist() == pytest.approx([64.0] * 50, rel=0.03)
    assert ((covered > 0).flatten(1).sum(1) <= 3 * 100).all()
    touched = (covered[:, 0] > 0).double().mean(0)
    assert (touched[2:-2, 2:-2] > 0).double().mean() > 0.95  # placed all over
    assert len({tuple(image.nonzero()[0].tolist()) for image in covered[:, 0]}) > 20


def test_scale_rotation_and_shape_change_what_is_covered() -> None:
    x = torch.zeros(200, 1, 40, 40)
    square, circle = (AdversarialPatch(size=0.3, shape=shape, scales=(0.5, 1.5)) for shape in ("square", "circle"))
    areas = []
    for attack in (square, circle):
        blank = attack.blank(x)
        patch = Patch(torch.ones_like(blank.pattern), blank.mask, blank.size, blank.rotation, blank.scales)
        areas.append(apply(patch, x).sum((1, 2, 3)))
    assert float(areas[0].min()) == pytest.approx((0.5 * 12) ** 2, rel=0.15)
    assert float(areas[0].max()) == pytest.approx((1.5 * 12) ** 2, rel=0.15)
    assert float((areas[1] / areas[0]).mean()) == pytest.approx(torch.pi / 4, rel=0.05)


def test_placement_belongs_to_the_sample_and_images_stay_in_bounds() -> None:
    x = grey(12)
    patch = AdversarialPatch().blank(x)
    streams = Streams.from_seed(3, torch.arange(12))
    whole = apply(patch, x, streams.fork(1))
    part = apply(patch, x[[5, 2]], streams.fork(1).select(torch.tensor([5, 2])))
    assert torch.allclose(whole[[5, 2]], part, atol=1e-6)
    assert not torch.equal(whole, apply(patch, x, streams.fork(2)))
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 1


def test_fitting_repeats_stays_in_bounds_and_leaves_the_model_as_found() -> None:
    model = EdgeDetector().train()
    x, y = 2 * grey() - 1, torch.zeros(24, dtype=torch.int64)
    attack = AdversarialPatch(steps=6, batch_size=8)
    fit = [
        attack.fit(model, x, y, bounds=(-1, 1), generator=torch.Generator().manual_seed(s)).pattern for s in (1, 1, 2)
    ]
    assert torch.equal(fit[0], fit[1])
    assert not torch.equal(fit[0], fit[2])
    assert -1 <= float(fit[0].min()) < 0 < float(fit[0].max()) <= 1
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_nonsense_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="fit the image"):
        AdversarialPatch(size=0.9, scales=(1.0, 1.5))
    with pytest.raises(UnsupportedError, match="expected images"):
        AdversarialPatch().fit(EdgeDetector(), torch.rand(3, 5), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UnsupportedError, match="no gradient"):
        AdversarialPatch().fit(lambda x: x.detach().flatten(1), grey(), torch.zeros(24, dtype=torch.int64))
