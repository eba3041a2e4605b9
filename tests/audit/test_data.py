"""Data: what arrays and folders become, and what is refused with which remedy."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from auditorch.audit.errors import DataError
from auditorch.audit.loading import arrays, images
from auditorch.audit.loading.data import load_samples, subset
from auditorch.audit.loading.encode import ImageEncode, find_layout
from auditorch.audit.samples import Samples
from auditorch.audit.spec import DataSpec, ModelSpec, Preprocessing, Spec
from PIL import Image

X = np.random.default_rng(0).integers(0, 256, (12, 6, 5), dtype=np.uint8)
Y = np.arange(12) % 3


def spec_of(folder: Path, size: Any = None, modality: Any = "image", **data: Any) -> Spec:
    return Spec(
        name="t",
        model=ModelSpec(factory="m:f", modality=modality, preprocessing=Preprocessing(size=size)),
        data=DataSpec.model_validate({"source": "d.npz"} | data),
        checks=(),
        variants=(),
        gates=(),
        seed=0,
        device=None,
        batch_size=None,
        raw={},
        base_dir=folder,
    )


def loaded(folder: Path, x: Any = X, y: Any = Y, **data: Any) -> Samples:
    np.savez(folder / "d.npz", x=x, y=y)
    return load_samples(spec_of(folder, **data))


def all_of(samples: Samples) -> Any:
    return samples.inputs[np.arange(len(samples))]


def test_an_npz_gives_what_it_holds(tmp_path: Path) -> None:
    samples = loaded(tmp_path)
    assert np.array_equal(all_of(samples), X)
    assert samples.labels.tolist() == Y.tolist()
    assert samples.ids.tolist() == list(range(12))
    assert list(samples.names[:3]) == ["0", "1", "2"]
    assert samples.classes == ("0", "1", "2")
    assert samples.sha256 == hashlib.sha256((tmp_path / "d.npz").read_bytes()).hexdigest()


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels"), ("data", "targets"), ("X_test", "Y_test")])
def test_arrays_are_found_by_their_usual_names(names: tuple[str, str], tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **{names[0]: X, names[1]: Y, "other": np.ones(2)})
    assert np.array_equal(all_of(load_samples(spec_of(tmp_path))), X)


def test_class_names_come_from_the_spec_then_from_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y, classes=np.array(["<b>", "b", "c"]))
    assert load_samples(spec_of(tmp_path)).classes == ("<b>", "b", "c")
    assert load_samples(spec_of(tmp_path, classes=("p", "q", "r"))).classes == ("p", "q", "r")
    assert load_samples(spec_of(tmp_path), "d.npz", ("u", "v", "w")).classes == ("u", "v", "w")


def test_a_folder_of_npy_is_mapped_into_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    samples = load_samples(spec_of(tmp_path, source="."))
    assert isinstance(samples.inputs, np.memmap)
    assert np.array_equal(all_of(samples), X)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (X[:0], Y[:0], "no samples"),
        (X, Y[:5], "12 inputs, but 5 labels"),
        (X, Y - 1, "sample 0 has label -1: classes count from 0"),
        (X, Y + 2**40, "that is no class number"),
        (X, Y + 0.5, "labels are float64: give whole numbers"),
        (X, np.array(list("abc") * 4), "labels are <U1: give whole numbers"),
        (X, np.eye(3)[Y], "for one-hot labels give labels.argmax(1)"),
        (X / 255.0 * np.nan, Y, "sample 0 holds NaN"),
        (np.where(np.arange(12)[:, None, None] == 7, np.inf, 0.5) * np.ones_like(X), Y, "sample 7 holds infinity"),
        (X.astype(np.float32), Y, "as floats: divide by 255 or store uint8"),
        (X.astype(np.float32) * 10, Y, "give images as uint8 or floats in 0..1"),
        (X / 127.5 - 1, Y, "the model's own normalisation belongs in model.preprocessing"),
        (X.astype(np.int64), Y, "images are int64: store uint8"),
        (X.reshape(12, -1), Y, "one sample here has shape (30,)"),
        (X[..., None, None], Y, "one sample here has shape (6, 5, 1, 1)"),
        (np.zeros((4, 3, 32, 3), np.uint8), Y[:4], "does not tell which axis holds the channels: set data.layout"),
        (np.zeros((4, 7, 32, 9), np.uint8), Y[:4], "does not tell which axis"),
        (np.zeros((4, 0, 5), np.uint8), Y[:4], "have no pixels"),
        (X.astype(object), Y, "it holds Python objects, which are never loaded"),
    ],
)
def test_data_that_no_audit_can_use(x: Any, y: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        loaded(tmp_path, x, y)
    assert expected in str(refused.value)
    assert "d.npz" in str(refused.value)


def test_values_are_checked_behind_the_first_chunk(tmp_path: Path) -> None:
    x = np.full((2500, 2, 2), 0.5, np.float32)
    x[2300, 1, 1] = np.nan
    with pytest.raises(DataError, match="sample 2300 holds NaN"):
        loaded(tmp_path, x, np.zeros(2500, int))


def test_labels_in_a_column_and_as_booleans_are_read(tmp_path: Path) -> None:
    assert loaded(tmp_path, X, Y[:, None]).labels.tolist() == Y.tolist()
    assert loaded(tmp_path, X, Y == 1).labels.tolist() == (Y == 1).astype(int).tolist()


def test_files_that_are_no_data(tmp_path: Path) -> None:
    def refusal(**data: Any) -> str:
        with pytest.raises(DataError) as refused:
            load_samples(spec_of(tmp_path, **data))
        return str(refused.value)

    assert "d.npz: no such file or folder" in refusal()
    (tmp_path / "d.npz").write_bytes(b"not an archive")
    assert "not an .npz file; save one with numpy.savez_compressed" in refusal()
    np.savez(tmp_path / "d.npz", a=X, b=Y)
    assert "needs an array x (or images, data, inputs) and an array y" in refusal()
    assert "found a, b" in refusal()
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[60:64] = b"\xff\xff\xff\xff"
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[150] ^= 255
    (tmp_path / "d.npz").write_bytes(content)
    assert "cannot be read as .npz" in refusal()
    (tmp_path / "empty").mkdir()
    assert "no sub-folders; an image folder has one sub-folder per class" in refusal(source="empty")


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_BYTES", 1000)
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((50, 8, 8), np.uint8), y=np.zeros(50, int))
    with pytest.raises(DataError, match=r"once unpacked, more than .* save x\.npy and y\.npy in a folder"):
        load_samples(spec_of(tmp_path))


def test_labels_beyond_the_named_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a label is 2, but 2 classes are named \(0\.\.1\)"):
        loaded(tmp_path, classes=("a", "b"))


def test_limit_takes_a_random_subset_that_the_seed_fixes(tmp_path: Path) -> None:
    x = np.arange(400, dtype=np.uint8).reshape(100, 2, 2)
    first = loaded(tmp_path, x, np.arange(100) % 4, limit=20)
    again = loaded(tmp_path, x, np.arange(100) % 4, limit=20)
    full = loaded(tmp_path, x, np.arange(100) % 4)
    assert first.ids.tolist() == again.ids.tolist() == sorted(first.ids)
    assert len(set(first.ids.tolist())) == 20
    assert first.ids.tolist() != list(range(20))
    assert np.array_equal(all_of(first), x[first.ids])
    assert first.labels.tolist() == (first.ids % 4).tolist()
    assert list(first.names) == [str(i) for i in first.ids]
    assert first.sha256 == full.sha256
    assert subset(full, 20, 1).ids.tolist() != first.ids.tolist()
    assert len(subset(full, 1000, 0)) == 100


def test_a_smaller_limit_is_a_part_of_a_larger_one(tmp_path: Path) -> None:
    full = loaded(tmp_path, np.zeros((50, 2, 2), np.uint8), np.zeros(50, int))
    assert set(subset(full, 5, 0).ids) < set(subset(full, 20, 0).ids)


def test_further_sources_are_read_in_full(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=X, y=Y)
    np.savez(tmp_path / "d.npz", x=X[:6], y=Y[:6])
    spec = spec_of(tmp_path, limit=3)
    assert len(load_samples(spec)) == 3
    assert len(load_samples(spec, "train.npz")) == 12


FACTORY = """
import numpy as np
from auditorch.audit.samples import Samples
def pair(n=4): return np.full((n, 3, 3), 0.5), np.arange(n) % 2
def nothing(): return None
def crash(): raise OSError("no database")
def twice():
    return Samples(np.zeros((2, 3, 3), np.uint8), np.array([0, 1]), np.array([5, 5]), list("ab"), ("a", "b"), "db", "f")
def samples():
    return Samples(np.zeros((4, 3, 3), np.uint8), np.array([0, 1, 0, 1]), np.array([9, 8, 7, 6]), list("abcd"),
                   ("no", "yes"), "db", "f00d")
"""


def test_a_factory_gives_pairs_or_samples(tmp_path: Path) -> None:
    (tmp_path / "d.py").write_text(FACTORY)

    def of(name: str, **arguments: Any) -> Samples:
        return load_samples(spec_of(tmp_path, source=None, factory=f"d.py:{name}", arguments=arguments))

    five = of("pair", n=5)
    assert all_of(five).shape == (5, 3, 3)
    assert five.source == "d.py:pair"
    assert five.sha256 == of("pair", n=5).sha256 != of("pair", n=6).sha256
    given = of("samples")
    assert (given.ids.tolist(), given.classes, given.sha256) == ([9, 8, 7, 6], ("no", "yes"), "f00d")
    assert len(load_samples(spec_of(tmp_path), "d.py:pair")) == 4
    with pytest.raises(DataError, match=r"returned NoneType; it must return \(inputs, labels\)"):
        of("nothing")
    with pytest.raises(DataError, match="two samples have the same id"):
        of("twice")
    with pytest.raises(DataError, match=r"d\.py:crash failed \(d\.py:6\): OSError: no database"):
        of("crash")


def save(path: Path, array: Any, mode: str | None = None, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i in range(4):
        save(tmp_path / "p" / ("cat", "<dog>")[i % 2] / f"{i}.png", X[i])
    (tmp_path / "p" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "p" / ".hidden").mkdir()
    return tmp_path


def test_an_image_folder_is_read_with_its_classes(pictures: Path) -> None:
    samples = load_samples(spec_of(pictures, source="p"))
    assert samples.classes == ("<dog>", "cat")
    assert list(samples.names) == ["<dog>/1.png", "<dog>/3.png", "cat/0.png", "cat/2.png"]
    assert samples.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(all_of(samples), X[[1, 3, 0, 2]])


def test_images_are_decoded_only_when_asked_for(pictures: Path) -> None:
    samples = load_samples(spec_of(pictures, source="p"))
    (pictures / "p" / "cat" / "2.png").unlink()
    assert np.array_equal(samples.inputs[np.array([2])], X[[0]])
    with pytest.raises(DataError, match=r"2\.png: cannot be read as an image"):
        all_of(samples)


def test_the_hash_of_a_folder_covers_names_and_pixels(pictures: Path) -> None:
    def digest() -> str:
        return load_samples(spec_of(pictures, source="p")).sha256

    first = digest()
    assert digest() == first
    (pictures / "p" / "cat" / "2.png").rename(pictures / "p" / "cat" / "5.png")
    second = digest()
    save(pictures / "p" / "cat" / "5.png", X[7])
    assert len({first, second, digest()}) == 3


def test_given_classes_order_the_labels_and_refuse_strangers(pictures: Path) -> None:
    spec = spec_of(pictures, source="p", classes=("cat", "<dog>", "cow"))
    assert load_samples(spec).labels.tolist() == [1, 1, 0, 0]
    with pytest.raises(DataError, match="sub-folder '<dog>' is no class; the classes are cat"):
        load_samples(spec_of(pictures, source="p", classes=("cat",)))


def test_colour_transparency_depth_and_rotation_are_normalised(tmp_path: Path) -> None:
    colour = np.random.default_rng(1).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    save(tmp_path / "p" / "a" / "1rgb.png", colour)
    clear = np.dstack([colour, np.where(np.arange(5) < 2, 0, 255) * np.ones((6, 1))]).astype(np.uint8)
    save(tmp_path / "p" / "a" / "2rgba.png", clear)
    save(tmp_path / "p" / "a" / "3palette.gif", X[0], "P")
    save(tmp_path / "p" / "a" / "4deep.png", X[0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "p" / "b" / "5turned.png", np.rot90(colour), exif=exif)
    x = all_of(load_samples(spec_of(tmp_path, source="p")))
    assert x.shape == (5, 6, 5, 3)
    assert np.array_equal(x[0], colour)
    assert (x[1, :, :2] == 255).all()
    assert np.array_equal(x[1, :, 2:], colour[:, 2:])
    assert np.array_equal(x[3], np.repeat(X[0][..., None], 3, 2))
    assert np.array_equal(x[4], colour)


def test_images_of_several_sizes_need_a_size(pictures: Path) -> None:
    save(pictures / "p" / "cat" / "9.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"9\.png: 8 x 8 pixels, the first image has 6 x 5: set model.preprocessing"):
        load_samples(spec_of(pictures, source="p"))
    assert all_of(load_samples(spec_of(pictures, source="p", size=(4, 3)))).shape == (5, 4, 3)


def test_damaged_images_and_bombs_are_named(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = pictures / "p" / "cat" / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(DataError, match=r"bad\.png: cannot be read as an image"):
        load_samples(spec_of(pictures, source="p"))
    bad.write_bytes((pictures / "p" / "cat" / "0.png").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"bad\.png: cannot be"):
        all_of(load_samples(spec_of(pictures, source="p")))
    bad.unlink()
    monkeypatch.setattr(images, "MAX_PIXELS", 20)
    with pytest.raises(DataError, match=r"5 x 6 pixels, more than the limit of 20"):
        load_samples(spec_of(pictures, source="p"))


def test_an_image_format_that_can_run_programs_is_not_opened(pictures: Path) -> None:
    (pictures / "p" / "cat" / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 5\n")
    with pytest.raises(DataError, match=r"script\.png: cannot be read"):
        load_samples(spec_of(pictures, source="p"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_a_clean_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    (tmp_path / "d.npz").chmod(0)
    with pytest.raises(DataError, match="Permission"):
        load_samples(spec_of(tmp_path))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((28, 28), "hw"), ((28, 28, 1), "hwc"), ((32, 30, 3), "hwc"), ((3, 32, 30), "chw"), ((4, 8, 8), "chw")],
)
def test_the_layout_follows_from_the_shape(shape: tuple[int, ...], layout: str) -> None:
    assert find_layout(shape) == layout


def test_encoding_scales_and_moves_channels_first() -> None:
    image = np.random.default_rng(2).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    x = ImageEncode()(image)
    assert x.shape == (2, 3, 5, 7)
    assert np.allclose(x.numpy(), np.moveaxis(image, -1, 1) / 255)
    assert np.allclose(ImageEncode()(image.astype(np.float64) / 255).numpy(), x.numpy())
    assert np.allclose(ImageEncode()(np.moveaxis(image, -1, 1)).numpy(), x.numpy())
    assert ImageEncode(layout="chw")(np.zeros((2, 3, 4, 3), np.uint8)).shape == (2, 3, 4, 3)
    assert ImageEncode(layout="hwc")(np.zeros((2, 3, 4, 3), np.uint8)).shape == (2, 3, 3, 4)
    with pytest.raises(DataError, match="layout hw needs 2 axes a sample"):
        ImageEncode(layout="hw")(image)


def test_resizing_keeps_a_flat_image_flat_and_the_range() -> None:
    x = ImageEncode(size=(3, 4))(np.full((2, 9, 9), 51, np.uint8))
    assert x.shape == (2, 1, 3, 4)
    assert np.allclose(x.numpy(), 0.2, atol=1e-6)


def test_tables_are_numbers_in_two_axes(tmp_path: Path) -> None:
    samples = loaded(tmp_path, np.arange(12.0).reshape(4, 3) - 5, Y[:4], modality="tabular")
    assert all_of(samples).min() == -5
    for x, expected in ((X, "a table has shape (n, d)"), (np.full((12, 2), np.nan), "sample 0 holds NaN")):
        with pytest.raises(DataError) as refused:
            loaded(tmp_path, x, Y, modality="tabular")
        assert expected in str(refused.value)
    with pytest.raises(DataError, match="give numbers"):
        loaded(tmp_path, np.array([["a", "b"]] * 12), Y, modality="tabular")


def test_layout_of_the_spec_decides_where_the_shape_does_not(tmp_path: Path) -> None:
    ambiguous = np.zeros((4, 3, 32, 3), np.uint8)
    assert len(loaded(tmp_path, ambiguous, Y[:4], layout="chw")) == 4
    with pytest.raises(DataError, match="layout hw needs 2 axes"):
        loaded(tmp_path, ambiguous, Y[:4], layout="hw")


def test_samples_keep_ids_and_names_through_selection(tmp_path: Path) -> None:
    samples = replace(loaded(tmp_path), names=[f"s{i}" for i in range(12)])
    part = samples.select(np.array([7, 2, 9])).select(np.array([2, 0]))
    assert (part.ids.tolist(), list(part.names), part.labels.tolist()) == ([9, 7], ["s9", "s7"], [0, 1])
    assert np.array_equal(np.concatenate([raw for raw, _ in part.batches(1)]), X[[9, 7]])
