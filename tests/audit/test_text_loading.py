"""Text models and tables of texts: what is read, in which order of classes, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.attacks.text.encoded import EncodedModel, quick
from auditorch.audit.errors import AuditError, DataError, ModelError, UnsafeModelError
from auditorch.audit.loading.model import describe_target, load
from auditorch.audit.loading.tables_of_text import read_text_table
from auditorch.audit.loading.tokens import PaddedTokenEncode, token_encode
from auditorch.audit.samples import Samples
from auditorch.audit.spec import load_spec, parse_spec
from auditorch.audit.target import Target

from ..attacks.text_world import tiny_bert
from .text_models import CSV, FACTORY

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder, a factory and a table, side by side."""
    folder = tmp_path_factory.mktemp("text")
    tiny_bert(folder / "bert")
    (folder / "model.py").write_text(FACTORY)
    (folder / "test.csv").write_text(CSV)
    return folder


def loaded(folder: Path, model: dict[str, Any], data: dict[str, Any] | None = None) -> tuple[Target, Samples]:
    raw = {
        "version": 1,
        "model": {"modality": "text", **model},
        "data": data or {"source": "test.csv"},
        "checks": ["performance"],
    }
    return load(parse_spec(raw, folder), CPU)


def test_a_hugging_face_folder_answers_as_transformers_does(project: Path) -> None:
    target, samples = loaded(project, {"source": "bert"})
    assert target.classes == ("negative", "positive")
    assert samples.labels.tolist() == [1, 1, 0, 0, 1, 0, 1, 0]
    assert list(samples.columns["source"]) == list("aabbabcc")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(project / "bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(project / "bert")
    raw = samples.inputs[np.arange(8)]
    with torch.no_grad():
        expected = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in raw])
    assert torch.allclose(target.logits(raw), expected, atol=1e-5), "padding must not matter"
    x = target.encode(["good film", "a great and fine story told well"])
    assert torch.equal(target.encode.trimmed(x[:1]), target.encode(["good film"]))  # type: ignore[attr-defined]
    assert target.encode.filled(x).sum(1).tolist() == [4, 9]  # type: ignore[attr-defined]
    assert torch.equal(target.encode.padded(x[:1], 9), x[:1])  # type: ignore[attr-defined]
    assert target.encode.padded(x, 999).shape[2] == 64, "never longer than the model reads"  # type: ignore[attr-defined]
    assert torch.allclose(target.module(target.encode.padded(x, 16)), target.module(x), atol=1e-5)  # type: ignore[attr-defined]
    assert target.modality == "text"
    described = describe_target(target, parse_spec({"version": 1, "model": {"source": "bert"}, "data": {"source": "x"},
                                                    "checks": ["performance"]}, project).model)  # fmt: skip
    assert described.architecture == "BertForSequenceClassification"


def test_classes_follow_the_model_not_the_alphabet(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "bert", tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    turned = {**config, "id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}
    (tmp_path / "bert" / "config.json").write_text(json.dumps(turned))
    (tmp_path / "test.csv").write_text(CSV)
    _, samples = loaded(tmp_path, {"source": "bert"})
    assert samples.classes == ("positive", "negative")
    assert samples.labels.tolist() == [0, 0, 1, 1, 0, 1, 0, 1]


def test_long_texts_are_cut_with_a_warning_that_counts_them(project: Path, tmp_path: Path) -> None:
    rows = [["text", "label"], ["good " * 100, "positive"], ["bad", "negative"], ["awful " * 63, "negative"]]
    with (tmp_path / "long.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    data = {"source": str(tmp_path / "long.csv")}
    target, _ = loaded(project, {"source": "bert"}, data)
    assert any("2 of 3 texts are longer than 64 tokens" in text for text in target.warnings), target.warnings
    target, _ = loaded(project, {"source": "bert", "preprocessing": {"max_length": 8}}, data)
    assert target.encode(["good " * 20]).shape == (1, 3, 8)


def test_pairs_are_encoded_with_types_and_only_their_column_has_offsets(project: Path, tmp_path: Path) -> None:
    (tmp_path / "nli.tsv").write_text("premise\thypothesis\tlabel\na cat\ta good dog\t1\nthe tree\tbad\t0\n")
    target, samples = loaded(project, {"source": "bert"}, {"source": str(tmp_path / "nli.tsv")})
    raw = samples.inputs[np.arange(2)]
    assert raw.shape == (2, 2)
    x = target.encode(raw)
    assert x[0, 2].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    spans = target.encode.offsets([tuple(row) for row in raw], 1)  # type: ignore[attr-defined]
    assert [span for span in spans[0] if span != (0, 0)] == [(0, 1), (2, 6), (7, 10)]
    assert target.logits(raw).shape == (2, 2)


def test_a_factory_brings_module_and_tokenizer(project: Path) -> None:
    target, samples = loaded(project, {"factory": "model.py:build", "classes": ["negative", "positive"]})
    logits = target.logits(samples.inputs[np.arange(8)])
    assert logits[0].tolist() == pytest.approx([-0.995, 0.995])
    assert (logits.argmax(1).numpy() == samples.labels).all()
    assert target.access == {"gradients", "scores", "labels"}


def test_a_pipeline_is_a_black_box_whose_classes_are_matched_by_name(project: Path) -> None:
    data = {"factory": "model.py:data", "classes": ["neg", "pos"]}
    target, samples = loaded(project, {"factory": "model.py:pipeline"}, data)
    assert target.access == {"scores", "labels"}
    assert (target.logits(samples.inputs[np.arange(4)]).argmax(1).numpy() == samples.labels).all()
    turned, _ = loaded(project, {"factory": "model.py:pipeline"}, {**data, "classes": ["pos", "neg"]})
    assert torch.allclose(target.logits(["good film"]).flip(1), turned.logits(["good film"]))
    assert target.logits(["good film"]).exp().sum().item() == pytest.approx(1)


def test_a_skops_file_is_read_and_unknown_types_are_refused(project: Path, tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    space: dict[str, Any] = {}
    exec(compile(FACTORY, "model.py", "exec"), space)
    skops.dump(space["pipeline"](), tmp_path / "nb.bin")
    (tmp_path / "test.csv").write_text("text,label\ngood film,pos\nbad story,neg\n")
    target, samples = loaded(tmp_path, {"source": "nb.bin"})
    assert target.classes == ("neg", "pos")
    assert (target.logits(samples.inputs[np.arange(2)]).argmax(1).numpy() == samples.labels).all()
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    odd = make_pipeline(CountVectorizer(), MultinomialNB())
    odd.steps[1][1].classes_ = np.array([0, 1])
    odd.steps[0] = ("odd", Odd())
    skops.dump(odd, tmp_path / "odd.bin")
    with pytest.raises(UnsafeModelError, match=r"not known to be safe.*Odd"):
        loaded(tmp_path, {"source": "odd.bin"})


class Odd:
    """A type that skops does not know."""


class Columns:
    """Lengths of words as ids, 0 for padding."""

    def __call__(self, texts: list[str]) -> torch.Tensor:
        rows = [[len(word) for word in text.split()] for text in texts]
        longest = max(map(len, rows)) + 1
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


class Telling(Columns):
    """Says what is padding."""

    def filled(self, x: torch.Tensor) -> torch.Tensor:
        return x > 0

    def padded(self, x: torch.Tensor, places: int) -> torch.Tensor:
        width = max(places, int((x > 0).sum(1).max())) + 1
        return torch.nn.functional.pad(x, (0, max(width - x.shape[1], 0)))[:, :width]


class Mean(torch.nn.Module):
    """The mean over all places, padding among them: no batch may change how much of it a text has."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape))
        mean = x.float().mean(1)
        return torch.stack([mean, -mean], 1)


def test_only_a_tokenizer_that_tells_padding_has_its_texts_padded_anew() -> None:
    texts, module = ["a", "a bb ccc dddd", "bb"], Mean()
    model = quick(EncodedModel(token_encode(Telling()), module, CPU, rows=2), "float32").logits
    assert model(texts)[:, 0].tolist() == [1 / 2, 10 / 5, 2 / 2]
    assert module.shapes == [(2, 2), (1, 5)]
    assert model(["bb", "a bb"])[:, 0].tolist() == [1.0, 1.0], "the first is known from before"
    assert module.shapes[2:] == [(1, 3)]
    module = Mean()
    plain = EncodedModel(token_encode(Columns()), module, CPU, rows=2)
    assert plain(texts)[:, 0].tolist() == pytest.approx([1 / 5, 10 / 5, 2 / 5])
    assert module.shapes == [(2, 5), (1, 5)]
    half: Any = Columns()
    half.filled, half.pad_token_id = Telling().filled, 0
    assert not hasattr(token_encode(half), "filled"), "one of the two does not say it, nor does an id"


TELLING = """

class Telling:
    __call__ = staticmethod(tokenize)

    def filled(self, x):
        return x > 0

    def padded(self, x, places):
        width = max(places, int((x > 0).sum(1).max()))
        return nn.functional.pad(x[:, :width], (0, max(width - x.shape[1], 0)))


def telling():
    return Bag(), Telling()
"""


def test_an_audit_knows_what_a_factory_tokenizer_tells(project: Path, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(FACTORY + TELLING)
    data = {"source": str(project / "test.csv")}
    plain, told = (loaded(tmp_path, {"factory": f"model.py:{name}"}, data)[0] for name in ("build", "telling"))
    assert not hasattr(plain.encode, "filled")
    assert isinstance(told.encode, PaddedTokenEncode)
    texts = ["good film", "a poor copy of something", "bad"]
    memory = quick(EncodedModel(told.encode, told.module, CPU, rows=1), "float32").logits
    assert torch.allclose(memory(texts), plain.module(plain.encode(texts)))


def test_a_tokenizer_that_tells_padding_wrongly_is_refused() -> None:
    liar: Any = Telling()
    encode, x = token_encode(liar), liar(["a bb", "c"])
    assert isinstance(encode, PaddedTokenEncode)
    liar.padded = lambda x, _: x[:, :1]
    with pytest.raises(ModelError, match="changes the tokens"):
        encode.padded(x, 1)
    liar.filled = lambda x: x
    with pytest.raises(ModelError, match="must return bool"):
        encode.filled(x)


def test_what_is_no_text_model_is_refused_with_the_reason(project: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it must return token ids"):
        loaded(project, {"factory": "model.py:nonsense"})
    with pytest.raises(ModelError, match=r"must return \(module, tokenizer\)"):
        loaded(project, {"factory": "model.py:data"})
    with pytest.raises(AuditError, match="Hugging Face folder"):
        loaded(project, {"source": "test.csv"})
    with pytest.raises(ModelError, match="no such file"):
        loaded(project, {"source": "nothing"})


def test_code_and_pickles_in_a_folder_are_never_run(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(project / "bert", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    data = {"source": str(project / "test.csv")}
    with pytest.raises(UnsafeModelError, match="code of its own"):
        loaded(tmp_path, {"source": "bert"}, data)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeModelError, match=r"pytorch_model\.bin"):
        loaded(tmp_path, {"source": "bert"}, data)


def test_an_encoder_without_a_head_is_no_classifier(project: Path, tmp_path: Path) -> None:
    body = transformers.AutoModel.from_pretrained(project / "bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(project / "bert")
    body.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="no weights for classifier"):
        loaded(tmp_path, {"source": "encoder"}, {"source": str(project / "test.csv")})


ROWS = [("good", 1, 0.5), ("我喜欢", 0, 1.5), ("", 1, 2.5), ('a, "b"\nc', 0, 3.5)]


def written(folder: Path, form: str) -> Path:
    """The same table in each format, under a name that says nothing."""
    path = folder / f"table-{form}.dat"
    texts, labels, scores = zip(*ROWS, strict=True)
    match form:
        case "csv" | "tsv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, delimiter="," if form == "csv" else "\t")
                writer.writerows([("text", "label", "score"), *ROWS])
        case "jsonl":
            path.write_text("\n".join(json.dumps({"text": t, "label": y, "score": s}) for t, y, s in ROWS))
        case "json":
            path.write_text(json.dumps([{"text": t, "label": y, "score": s} for t, y, s in ROWS]))
        case _:
            pyarrow = pytest.importorskip("pyarrow")
            table = pyarrow.table({"text": texts, "label": labels, "score": scores})
            if form == "parquet":
                import pyarrow.parquet

                pyarrow.parquet.write_table(table, path)
            else:
                path.mkdir()
                info = {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}
                (path / "dataset_info.json").write_text(json.dumps(info))
                (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
                sink = pyarrow.OSFile(str(path / "data.arrow"), "wb")
                with sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table)
    return path


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "parquet", "datasets"])
def test_every_format_gives_the_same_table(form: str, tmp_path: Path) -> None:
    table = read_text_table(written(tmp_path, form), None, None, None)
    assert table.texts.tolist() == [text for text, _, _ in ROWS]
    assert table.labels.tolist() == [1, 0, 1, 0]
    assert table.columns["score"].tolist() == [0.5, 1.5, 2.5, 3.5]
    assert len(table.sha256) == 64


def test_a_data_set_on_disk_is_read_from_its_own_folder_only(tmp_path: Path) -> None:
    path = written(tmp_path, "datasets")
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}))
    with pytest.raises(DataError, match="outside the folder"):
        read_text_table(path, None, None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,1\nb,\n", "row 2 has no label"),
        ("text,label\na,1.5\nb,maybe\n", "which is no class|label"),
        ("text,label\na,1,2\n", "3 fields"),
        ("text,text\na,1\n", "two columns"),
        ("words,label\na,1\n", "which column holds the texts"),
        ("text,points\na,1\n", "which column holds the labels"),
        ('{"text": 3, "label": 1}', "row 1: text is int"),
        ('{"text": null, "label": 1}', "row 1: text is missing"),
        ('{"text": "\\ud800", "label": 1}', "surrogate"),
        ('{"text": "a", "label"', "cannot be read as JSON lines"),
        ("text,label\n", "no samples"),
        ('text,label\n"a,1\n', "cannot be read as a table"),
    ],
)
def test_bad_tables_are_refused_with_place_and_reason(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "table").write_text(content)
    named = ("no", "yes") if "maybe" in content else None
    with pytest.raises(DataError, match=message):
        read_text_table(tmp_path / "table", None, None, named)


def test_columns_are_named_in_the_spec_and_misspellings_answered(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("body,stars,text\ngood one,5,x\nbad one,1,y\n")
    table = read_text_table(tmp_path / "t.csv", "body", "stars", ("1", "5"))
    assert table.texts.tolist() == ["good one", "bad one"]
    assert table.labels.tolist() == [1, 0]
    with pytest.raises(DataError, match="Did you mean 'body'"):
        read_text_table(tmp_path / "t.csv", "boddy", None, None)


def test_not_utf8_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("text,label\nna\xefve,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_text_table(tmp_path / "t.csv", None, None, None)


def test_the_example_asks_for_checks_and_gates_that_exist() -> None:
    spec = load_spec(Path(__file__).parents[2] / "examples" / "sentiment" / "audit.yaml")
    assert {check.name for check in spec.checks} >= {"performance", "text_evasion", "behaviour", "text_trigger"}
    assert all(gate.expression.partition(".")[0] in {check.id for check in spec.checks} for gate in spec.gates)
