import torch
from auditorch.privacy.scattering import ANGLES, PATHS, Scattering, _morlet


def test_shapes_and_a_constant_image() -> None:
    """Wavelets have mean 0: of a constant image only the average is left."""
    out = Scattering(16)(torch.full((2, 3, 16, 16), 0.7))
    assert out.shape == (2, 3 * PATHS, 4, 4)
    paths = out.view(2, 3, PATHS, 4, 4)
    torch.testing.assert_close(paths[:, :, 0], torch.full((2, 3, 4, 4), 0.7), rtol=1e-5, atol=0)
    assert paths[:, :, 1:].abs().max() < 1e-5


def test_stripes_answer_to_the_wavelet_of_their_angle_and_scale() -> None:
    columns = torch.arange(32, dtype=torch.float32)
    for scale, frequency in enumerate((0.75 * torch.pi, 0.375 * torch.pi)):
        stripes = torch.cos(frequency * columns).expand(1, 1, 32, 32)
        for image, angle in ((stripes, 0), (stripes.transpose(2, 3), ANGLES // 2)):
            strength = Scattering(32)(image)[0, 1 : 1 + 2 * ANGLES, 2:6, 2:6].mean((1, 2))
            assert int(strength.argmax()) == scale * ANGLES + angle


def test_small_shifts_change_little() -> None:
    """The point of the average: features move far less than pixels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 1, 32, 32, generator=generator)
    moved = x.roll(1, 3)
    transform = Scattering(32)
    pixels = float((x - moved).norm() / x.norm())
    features = float((transform(x) - transform(moved)).norm() / transform(x).norm())
    assert features < 0.4 * pixels


def test_wavelets_are_band_pass() -> None:
    for scale in (0, 1):
        spectrum = torch.fft.fft2(_morlet(40, scale, 0)).abs()
        assert spectrum[0, 0] < 1e-4 * spectrum.max()
        peak = int(spectrum[0].argmax()) / 40 * 2 * torch.pi
        assert abs(peak - 0.75 * torch.pi / 2**scale) < 0.25
