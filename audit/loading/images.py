"""Images in folders, one sub-folder per class, decoded when they are asked for."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".pbm"})
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

MAX_PIXELS = 64_000_000
"""Of one image: a larger one is taken for a decompression bomb."""


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Images by position as uint8 ``(b, h, w, 3)`` or, where all are grey, ``(b, h, w)``.

    Attributes:
        files: paths, in order of the samples.
        names: the same relative to the folder, as a person reads them.
        mode: ``L`` or ``RGB``: what every image is converted to.
        size: height and width to resize to, or None when all images agree.
    """

    files: Sequence[Path]
    names: Sequence[str]
    mode: str
    size: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: NDArray[np.int64], /) -> NDArray[np.uint8]:
        return np.stack([self._decode(self.files[i]) for i in index])

    def _decode(self, path: Path) -> NDArray[np.uint8]:
        image = _opened(path, self.mode)
        if self.size is not None:
            height, width = self.size
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image)


@dataclass(frozen=True, slots=True)
class LabelledFolder:
    """An image folder with its labels, class names, and the hash over paths and contents."""

    images: ImageFolder
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    sha256: str


def read_folder(path: Path, size: int | tuple[int, int] | None, named: tuple[str, ...] | None) -> LabelledFolder:
    """Lists the images of a folder and looks at every header; pixels are decoded later.

    Args:
        size: what images are resized to, from ``model.preprocessing.size``.
        named: the classes in order of the labels; sorted sub-folders when None.

    Raises:
        DataError: when there are no images or classes, one cannot be read, or sizes differ and ``size`` is None.
    """
    folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not folders:
        raise DataError(f"{path}: no sub-folders; an image folder has one sub-folder per class")
    classes = named or tuple(folder.name for folder in folders)
    strangers = [folder.name for folder in folders if folder.name not in classes]
    if strangers:
        raise DataError(f"{path}: sub-folder {strangers[0]!r} is no class; the classes are {', '.join(classes[:10])}")
    files = [(file, classes.index(folder.name)) for folder in folders for file in _images(folder)]
    if not files:
        raise DataError(f"{path}: no images in its sub-folders (looked for {', '.join(sorted(SUFFIXES))})")
    paths = [file for file, _ in files]
    names = [file.relative_to(path).as_posix() for file in paths]
    mode, common = _survey(paths, size)
    images = ImageFolder(paths, names, mode, common)
    return LabelledFolder(images, np.array([label for _, label in files]), classes, _hash(paths, names))


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def _survey(paths: Sequence[Path], size: int | tuple[int, int] | None) -> tuple[str, tuple[int, int] | None]:
    """The mode and size that all images are brought to."""
    grey, first = True, None
    for path in paths:
        image = _header(path)
        grey = grey and image.mode in ("1", "L", "I;16")
        shape = _upright_size(image)
        first = first or shape
        if shape != first and size is None:
            raise DataError(
                f"{path}: {shape[0]} x {shape[1]} pixels, the first image has {first[0]} x {first[1]}: "
                "set model.preprocessing.size to what the model takes"
            )
    return ("L" if grey else "RGB"), ((size, size) if isinstance(size, int) else size)


def _header(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS:,}")
            image.getexif()
            return image
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read as an image ({type(error).__name__}: {error})") from error


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width after the rotation that the camera noted."""
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def _opened(path: Path, mode: str) -> Image.Image:
    _header(path)
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            upright = ImageOps.exif_transpose(image)
            return _converted(upright, mode)
    except Exception as error:
        raise DataError(f"{path}: cannot be decoded ({type(error).__name__}: {error})") from error


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Transparent parts turn white; 16-bit grey is scaled to 8 bits."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _hash(paths: Sequence[Path], names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path, name in zip(paths, names, strict=True):
        with path.open("rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
