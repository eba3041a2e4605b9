import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.defenses.augmentation import Augment, Chain, RandomFlip
from auditorch.defenses.augmentations.colour import RandomColour
from auditorch.defenses.augmentations.crop import RandomCrop
from auditorch.defenses.augmentations.features import GaussianNoise, Swap
from auditorch.defenses.augmentations.randaugment import OPERATIONS, RandAugment
from auditorch.defenses.augmentations.spatial import RandomSpatial

from .toys import images

ALL: list[Augment] = [
    RandomFlip(),
    RandomCrop(2),
    RandomSpatial(20, 0.1, 0.2),
    RandomColour(0.3),
    RandAugment(2, 9),
    GaussianNoise(0.1, (0, 1)),
    Swap(0.3),
]
IMAGES = ALL[:6]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", ALL, ids=lambda augment: type(augment).__name__)
def test_every_augmentation_keeps_shape_and_range_and_draws_for_each_sample(augment: Augment, channels: int) -> None:
    same = images(1, channels).expand(32, -1, -1, -1).clone()
    x = images(32, channels) if isinstance(augment, Swap) else same
    changed = augment(x, generator())
    assert changed.shape == x.shape
    assert changed.dtype == x.dtype
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1
    assert torch.equal(augment(x, generator()), changed), "the generator decides"
    assert not torch.equal(augment(x, generator(1)), changed)
    different = {tuple(row.flatten().tolist()) for row in changed}
    assert len(different) > (1 if isinstance(augment, RandomFlip) else 6), "samples of a batch get the same change"


def test_flip_mirrors_its_share() -> None:
    x = images(400)
    changed = RandomFlip(0.3)(x, generator())
    mirrored = (changed == x.flip(-1)).flatten(1).all(1)
    assert ((changed == x).flatten(1).all(1) | mirrored).all()
    assert float(mirrored.float().mean()) == pytest.approx(0.3, abs=0.07)
    assert torch.equal(RandomFlip(1.0)(x, generator()), x.flip(-1))


def test_crop_moves_by_whole_pixels_in_all_directions_equally() -> None:
    x = torch.zeros(900, 1, 7, 9)
    x[:, :, 3, 4] = 1
    moved = RandomCrop(2)(x, generator())
    places = moved.flatten(1).argmax(1)
    assert (moved.flatten(1).sum(1) == 1).all()
    rows, columns = places // 9 - 3, places % 9 - 4
    assert set(rows.tolist()) == set(columns.tolist()) == {-2, -1, 0, 1, 2}
    counts = torch.bincount((rows + 2) * 5 + columns + 2, minlength=25)
    assert int(counts.min()) > 15, "some of the 25 places are hardly drawn"


def test_spatial_changes_are_no_larger_than_asked() -> None:
    """A bright dot off the centre: its distance tells the scale, its angle the rotation."""
    x = torch.zeros(300, 1, 41, 41)
    x[:, :, 20, 32:35] = 1
    grid = torch.arange(41.0) - 20

    def centre(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mass = image.sum((1, 2, 3))
        return (image.sum(2) * grid).sum((1, 2)) / mass, (image.sum(3) * grid).sum((1, 2)) / mass

    across, down = centre(RandomSpatial(rotation=30)(x, generator()))
    angle = torch.rad2deg(torch.atan2(-down, across))
    assert float(angle.abs().max()) == pytest.approx(30, abs=2)
    assert float(angle.mean()) == pytest.approx(0, abs=3)
    across, _ = centre(RandomSpatial(scale=0.2)(x, generator()))
    assert float(across.min()) == pytest.approx(13 * 0.8, abs=0.4)
    assert float(across.max()) == pytest.approx(13 * 1.2, abs=0.4)
    across, down = centre(RandomSpatial(translation=0.1)(x, generator()))
    assert float((across - 13).abs().max()) == pytest.approx(4.1, abs=0.2)
    assert float(down.abs().max()) == pytest.approx(4.1, abs=0.2)


def test_colour_changes_brightness_up_to_its_strength_and_grey_stays_grey() -> None:
    grey = torch.full((300, 3, 4, 4), 0.5)
    changed = RandomColour(0.2)(grey, generator())
    torch.testing.assert_close(changed, changed[:, :1].expand_as(changed), atol=1e-4, rtol=0)
    shift = changed[:, 0, 0, 0] - 0.5
    assert float(shift.max()) == pytest.approx(0.2, abs=0.01)
    assert float(shift.min()) == pytest.approx(-0.2, abs=0.01)


def test_noise_and_swap() -> None:
    x = torch.arange(2000.0).view(400, 5)
    noisy = GaussianNoise(0.5)(x, generator())
    assert float((noisy - x).std()) == pytest.approx(0.5, rel=0.05)
    swapped = Swap(0.25)(x, generator())
    assert float((swapped != x).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(swapped % 5, x % 5), "values stay in their column"


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_randaugment_operations_change_images_and_none_does_at_strength_zero(name: str) -> None:
    x = images(6, 3, 12)
    changed = OPERATIONS[name](x, torch.tensor([0.9, -0.9, 0.9, -0.9, 0.9, -0.9]))
    assert changed.shape == x.shape
    assert torch.equal(changed, x) == (name == "identity")
    still = OPERATIONS[name](x, torch.zeros(6))
    if name not in {"autocontrast", "equalize", "posterize"}:
        torch.testing.assert_close(still, x, atol=1e-5, rtol=0)


def test_randaugment_known_answers() -> None:
    ramp = torch.linspace(0.2, 0.6, 100).view(1, 1, 10, 10)
    full = OPERATIONS["autocontrast"](ramp, torch.zeros(1))
    torch.testing.assert_close(full, torch.linspace(0, 1, 100).view(1, 1, 10, 10), atol=1e-5, rtol=0)
    skewed = (0.2 + 0.6 * torch.linspace(0, 1, 4096) ** 2).view(1, 1, 64, 64)
    flat = OPERATIONS["equalize"](skewed, torch.zeros(1))
    assert float(flat.quantile(0.5)) == pytest.approx(0.5, abs=0.03)
    assert float(flat.quantile(0.9)) == pytest.approx(0.9, abs=0.03)
    bits = OPERATIONS["posterize"](torch.linspace(0, 1, 256).view(1, 1, 16, 16), torch.ones(1))
    assert len(bits.unique()) == 16, "four bits"
    inverted = OPERATIONS["solarize"](torch.tensor([0.2, 0.9]).view(1, 1, 1, 2), torch.tensor([0.5]))
    torch.testing.assert_close(inverted.flatten(), torch.tensor([0.2, 0.1]))
    corner = torch.zeros(1, 1, 9, 9)
    corner[0, 0, 0, 4] = 1
    sheared = OPERATIONS["shear x"](corner, torch.ones(1))
    assert int(sheared[0, 0, 0].argmax()) != 4
    assert torch.equal(sheared[0, 0, 4], corner[0, 0, 4]), "the middle row stays"


def test_chain_applies_in_order() -> None:
    x = images(5)
    source = generator()
    expected = GaussianNoise(0.1)(RandomFlip()(x, source), source)
    assert torch.equal(Chain((RandomFlip(), GaussianNoise(0.1)))(x, generator()), expected)


@pytest.mark.parametrize("augment", [augment for augment in IMAGES if not isinstance(augment, GaussianNoise)], ids=str)
def test_image_augmentations_refuse_tables(augment: Augment) -> None:
    with pytest.raises(UnsupportedError, match=r"changes images.*For tables use noise or swap"):
        augment(torch.rand(4, 3), generator())


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomFlip(2),
        lambda: RandomCrop(0),
        lambda: RandomSpatial(scale=1),
        lambda: RandomColour(2),
        lambda: RandAugment(0),
        lambda: RandAugment(2, 11),
        lambda: GaussianNoise(-1),
        lambda: Swap(2),
    ],
)
def test_bad_arguments(make) -> None:  # noqa: ANN001
    with pytest.raises(UnsupportedError):
        make()
