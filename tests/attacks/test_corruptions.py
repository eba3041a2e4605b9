"""The 15 corruptions: known answers, severity, repeatability, and JPEG and pixelation against Pillow."""

import io
import itertools

import numpy as np
import pytest
import torch
from auditorch.attacks.corruptions.common import APPROXIMATED, CORRUPTIONS, SEVERITIES, corrupt
from auditorch.attacks.corruptions.noise import poisson
from auditorch.attacks.corruptions.severities import parameters
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.streams import Streams
from PIL import Image
from scipy import stats
from torch import Tensor


def textures(n: int, c: int, h: int, w: int | None = None) -> Tensor:
    """Images with the 1/f spectrum of natural ones, in 0..1."""
    w = h if w is None else w
    spectrum = torch.fft.rfft2(torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(5)))
    rows, columns = torch.fft.fftfreq(h)[:, None] * h, torch.fft.rfftfreq(w)[None, :] * w
    x = torch.fft.irfft2(spectrum / torch.hypot(rows, columns).clamp_min(1), s=(h, w))
    x = x - x.mean((2, 3), keepdim=True)
    return (0.45 + 0.2 * x / x.std((2, 3), keepdim=True)).clamp(0, 1)


def streams(n: int, seed: int = 0) -> Streams:
    return Streams.from_seed(seed, torch.arange(n))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("n", "c", "side"), [(24, 1, 28), (24, 3, 32), (2, 3, 80)])
def test_distortion_grows_with_severity(name: str, n: int, c: int, side: int) -> None:
    x = textures(n, c, side)
    sizes = [float((corrupt(x, name, s, streams(n)) - x).square().mean().sqrt()) for s in SEVERITIES]
    assert sizes[0] > 0.01
    # The streak of severity 4 differs from that of 3 in its faintest part alone, in the published values as well.
    slack = 1e-3 if name == "motion_blur" else 0.0
    assert all(b > a - slack for a, b in itertools.pairwise(sizes)), sizes


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 17, 40), (4, 33, 20), (2, 9, 5)])
def test_any_size_and_channels_stay_images(name: str, shape: tuple[int, int, int]) -> None:
    x = textures(3, *shape).double()
    before = x.clone()
    for severity in (1, 5):
        y = corrupt(x, name, severity)
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert y.isfinite().all()
        assert float(y.min()) >= 0
        assert float(y.max()) <= 1
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_sample_is_corrupted_the_same_in_any_batch(name: str) -> None:
    x = textures(5, 3, 20)
    whole = corrupt(x, name, 3, streams(5))
    order = torch.tensor([3, 1])
    part = corrupt(x[order], name, 3, streams(5).select(order))
    assert (whole[order] - part).abs().max() <= (1.01 / 255 if name == "jpeg_compression" else 1e-5)
    other = corrupt(x, name, 3, streams(5, seed=1))
    fixed = name in {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    assert torch.equal(whole, other) == fixed


@pytest.mark.parametrize("quality_of", [1, 3, 5])
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 40, 32), (3, 32, 32), (3, 30, 50)])
def test_jpeg_agrees_with_pillow(quality_of: int, shape: tuple[int, int, int]) -> None:
    x = (textures(1, *shape) * 255).round() / 255
    quality = round(parameters("jpeg_compression", quality_of, min(shape[1:]))[0])
    pixels = (x[0] * 255).round().byte().movedim(0, -1).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze() if shape[0] == 1 else pixels).save(file, "JPEG", quality=quality)
    theirs = torch.from_numpy(np.array(Image.open(file))).float().view(*shape[1:], shape[0]).movedim(-1, 0)
    ours = corrupt(x, "jpeg_compression", quality_of)[0] * 255
    away = (ours - theirs).abs()
    # Decoders round differently: single coefficients on the edge between two steps come out otherwise.
    assert float(away.mean()) < (0.5 if shape[0] == 1 else 3)
    assert float((x[0] * 255 - theirs).abs().mean()) > 6 * float(away.mean())


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_agrees_with_pillow(severity: int) -> None:
    x = textures(1, 1, 28)
    small = int(28 * parameters("pixelate", severity, 28)[0])
    image = Image.fromarray(x[0, 0].numpy())
    box = Image.Resampling.BOX
    theirs = torch.from_numpy(np.array(image.resize((small, small), box).resize((28, 28), box)))
    assert torch.allclose(corrupt(x, "pixelate", severity)[0, 0], theirs, atol=1e-5)


def test_noise_has_the_moments_it_claims() -> None:
    grey = torch.full((8, 1, 64, 64), 0.5)
    noisy = corrupt(grey, "gaussian_noise", 1)
    assert float(noisy.std()) == pytest.approx(parameters("gaussian_noise", 1, 64)[0], rel=0.03)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=2e-3)
    shot = corrupt(grey, "shot_noise", 3)
    assert float(shot.var()) == pytest.approx(0.5 / parameters("shot_noise", 3, 64)[0], rel=0.05)
    hit = corrupt(grey, "impulse_noise", 5)
    assert float((hit != 0.5).float().mean()) == pytest.approx(parameters("impulse_noise", 5, 64)[0], rel=0.05)
    assert float(hit[hit != 0.5].mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("rate", [0.0, 0.3, 2.0, 4.9, 5.1, 40.0])
def test_poisson_counts_follow_the_distribution(rate: float) -> None:
    counts = poisson(torch.full((40, 500), rate), streams(40)).flatten().numpy()
    assert (counts == np.round(counts)).all()
    ends = np.arange(counts.max() + 2)
    share = np.searchsorted(np.sort(counts), ends, side="right") / counts.size
    # The largest gap to the true distribution function that 20,000 draws should show once in a thousand runs.
    assert np.abs(share - stats.poisson.cdf(ends, rate)).max() < 1.95 / np.sqrt(counts.size)


def test_blurs_keep_the_mean_and_flat_images() -> None:
    flat = torch.full((2, 3, 20, 20), 0.3)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"):
        assert torch.allclose(corrupt(flat, name, 5), flat, atol=1e-5), name
    x = textures(8, 1, 48)
    sharp, blurred = (image.diff(dim=3).abs().mean() for image in (x, corrupt(x, "defocus_blur", 5)))
    assert blurred < 0.5 * sharp


def test_light_and_contrast_do_what_the_formula_says() -> None:
    x = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    brighter = corrupt(x, "brightness", 5)[0, :, 0, 0]
    assert brighter.tolist() == pytest.approx([0.3, 0.6, 0.9])  # value .6 + .3, hue and saturation kept
    assert corrupt(torch.zeros(1, 1, 8, 8), "brightness", 2).unique().tolist() == pytest.approx([0.1])
    steps = torch.tensor([0.2, 0.6]).repeat(1, 1, 8, 4)
    assert corrupt(steps, "contrast", 2).unique().tolist() == pytest.approx([0.3, 0.5])


def test_fog_scales_back_to_the_brightest_pixel() -> None:
    x = textures(4, 1, 32)
    foggy = corrupt(x, "fog", 4)
    assert (foggy.amax((1, 2, 3)) <= x.amax((1, 2, 3)) + 1e-6).all()
    assert float(corrupt(torch.zeros(1, 1, 32, 32), "fog", 5).max()) == 0


def test_parameters_are_published_at_both_ends_and_grow_between() -> None:
    assert parameters("gaussian_noise", 5, 32) == (0.10,)
    assert parameters("gaussian_noise", 5, 16) == (0.10,)
    assert parameters("gaussian_noise", 5, 224) == pytest.approx((0.38,))
    assert 0.10 < parameters("gaussian_noise", 5, 64)[0] < 0.38
    assert parameters("defocus_blur", 1, 448) == pytest.approx((6, 0.2))
    assert set(APPROXIMATED) < set(CORRUPTIONS)
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize(
    ("x", "name", "severity", "message"),
    [
        (torch.rand(1, 1, 8, 8), "rain", 1, "choose one of"),
        (torch.rand(1, 1, 8, 8), "fog", 6, "choose 1 to 5"),
        (torch.rand(1, 8, 8), "fog", 1, "expected float images"),
        (torch.rand(1, 1, 8, 8) + 1, "fog", 1, "scale them to 0..1"),
        (torch.full((1, 1, 8, 8), float("nan")), "fog", 1, "scale them to 0..1"),
    ],
)
def test_nonsense_is_refused(x: Tensor, name: str, severity: int, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        corrupt(x, name, severity)
