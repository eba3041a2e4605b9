"""Models: what loading makes of them, and what it says of those that cannot be used."""

import io
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.audit.errors import AuditError, DataError, ModelError, UnsafeModelError, UnsupportedError
from auditorch.audit.loading.model import NO_WEIGHTS, TRUSTED, describe_target, inner, load, load_target
from auditorch.audit.loading.probe import PROBABILITIES, RANDOM
from auditorch.audit.loading.weights import load_weights, read_weights
from auditorch.audit.spec import DataSpec, ModelSpec, Preprocessing, Spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn

CPU = torch.device("cpu")

FACTORY = """
import torch
from torch import nn

def build(k=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, k))

def grey(k=3):
    return nn.Sequential(nn.Conv2d(1, k, 4), nn.Flatten())

class Wrapped(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.body, self.change = build(), change
    def forward(self, x):
        return self.change(self.body(x))

class Output:
    def __init__(self, logits):
        self.logits = logits

def softmax(): return Wrapped(lambda z: z.softmax(1))
def pair(): return Wrapped(lambda z: (z, z))
def mapping(): return Wrapped(lambda z: {"logits": z})
def output(): return Wrapped(Output)
def nan(): return Wrapped(lambda z: z * float("nan"))
def inf(): return Wrapped(lambda z: z / 0)
def argmax(): return Wrapped(lambda z: z.argmax(1, keepdim=True) + torch.zeros(1, 2).long())
def single(): return Wrapped(lambda z: z[:, :1])
def flat(): return Wrapped(lambda z: z[:, 0])
def noisy(): return Wrapped(lambda z: z + torch.randn_like(z))
def half(): return build().to(torch.bfloat16)
def half_output(): return Wrapped(Output).to(torch.bfloat16)
def number(): return 3
def crash(): raise KeyError("no such layer")
def tied():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    model[2].weight = model[1].weight
    return model
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    known = set(sys.modules)
    (tmp_path / "model.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "test.npz", x=rng.integers(0, 256, (20, 4, 4), dtype=np.uint8), y=np.arange(20) % 3)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def spec_of(folder: Path, factory: str | None = "model.py:build", **model: Any) -> Spec:
    return Spec(
        name="t",
        model=ModelSpec(factory=factory, **model),
        data=DataSpec(source="test.npz"),
        checks=(),
        variants=(),
        gates=(),
        seed=0,
        device=None,
        batch_size=None,
        raw={},
        base_dir=folder,
    )


def linear(k: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, k))


def refusal(spec: Spec, error: type[AuditError] = ModelError) -> str:
    with pytest.raises(error) as refused:
        load(spec, CPU)
    return str(refused.value)


def test_a_model_answers_as_its_weights_and_normalisation_say(folder: Path) -> None:
    model = linear()
    save_file(model.state_dict(), folder / "m.safetensors")
    preprocessing = Preprocessing(mean=(0.25,), std=(0.5,))
    target, samples = load(spec_of(folder, weights="m.safetensors", preprocessing=preprocessing), CPU)
    raw = samples.inputs[np.arange(len(samples))]
    x = torch.from_numpy(raw).float().unsqueeze(1) / 255
    assert torch.allclose(target.encode(raw), x)
    assert torch.allclose(target.logits(raw), model((x - 0.25) / 0.5), atol=1e-5)
    assert target.classes == samples.classes == ("0", "1", "2")
    assert target.bounds == (0.0, 1.0)
    assert target.warnings == ()
    assert not target.module.training
    assert list(target.module.state_dict()) == ["body.1.weight", "body.1.bias"]


def test_the_record_describes_the_users_module_not_the_wrappers(folder: Path) -> None:
    spec = spec_of(folder, "model.py:softmax", preprocessing=Preprocessing(mean=(0.5,), std=(0.5,)))
    target, _ = load(spec, CPU)
    info = describe_target(target, spec.model)
    assert (info.architecture, info.parameters, info.sha256) == ("Wrapped", 16 * 3 + 3, target.sha256)
    assert type(inner(target.module)).__name__ == "Wrapped"


def test_checkpoints_are_read_with_prefixes_and_nesting(folder: Path) -> None:
    model = linear()
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}, "epoch": 3}, folder / "m.pt")
    target, _ = load(spec_of(folder, weights="m.pt"), CPU)
    assert torch.equal(target.module.state_dict()["1.weight"], model.state_dict()["1.weight"])


def test_the_file_is_told_by_content_not_by_name(folder: Path) -> None:
    save_file(linear().state_dict(), folder / "m.pt")
    assert load(spec_of(folder, weights="m.pt"), CPU)[0].warnings == ()


def test_tied_weights_are_saved_once(folder: Path) -> None:
    save_file({"1.weight": torch.eye(16)}, folder / "m.safetensors")
    target, samples = load(spec_of(folder, "model.py:tied", weights="m.safetensors"), CPU)
    raw = samples.inputs[np.arange(2)]
    assert torch.allclose(target.logits(raw), target.encode(raw).flatten(1))


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"1.weight": torch.ones(3, 16)}, ["missing in the file (1): 1.bias"]),
        (
            {"weight": torch.ones(3, 16)},
            ["missing in the file (2): 1.weight, 1.bias", "unknown to the model (1): weight"],
        ),
        (
            {"1.weight": torch.ones(5, 16), "1.bias": torch.ones(3)},
            ["shapes that differ (1): 1.weight: file (5, 16), model (3, 16)"],
        ),
        (
            {"1.weight": torch.ones(3, 16, dtype=torch.int8), "1.bias": torch.ones(3)},
            ["number types that differ (1): 1.weight: file int8, model float32"],
        ),
        (
            {**linear().state_dict(), **{f"extra.{i}": torch.ones(1) for i in range(9)}},
            ["unknown to the model (9): extra.0, extra.1, extra.2, extra.3, and 5 more"],
        ),
    ],
)
def test_weights_that_do_not_fit(tensors: dict[str, Tensor], expected: list[str], folder: Path) -> None:
    save_file(tensors, folder / "m.safetensors")
    message = refusal(spec_of(folder, weights="m.safetensors"))
    assert message.startswith("m.safetensors does not fit the model")
    assert all(part in message for part in expected)


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("nothing.py:build", "nothing.py: no such file"),
        ("model.py:bild", "has no callable 'bild'. Did you mean 'build'?"),
        ("model.py", "is no factory: write file.py:callable"),
        ("no_such_package_x:build", "no_such_package_x cannot be imported: ModuleNotFoundError"),
        ("model.py:crash", "model.py:crash failed (model.py:"),
        ("model.py:number", "returned int; it must return a torch.nn.Module"),
        ("syntax.py:build", "syntax.py cannot be imported: SyntaxError"),
        ("raises.py:build", "raises.py cannot be imported (raises.py:1): ValueError: boom"),
        ("model.py:pair", "returns a tuple of 2: it must return one tensor of logits"),
        ("model.py:nan", "returns NaN for valid inputs"),
        ("model.py:inf", "returns infinity"),
        ("model.py:argmax", "returns int64"),
        ("model.py:single", "returns one output a sample"),
        ("model.py:flat", "returns shape (8,) for 8 inputs"),
    ],
)
def test_factories_that_give_no_usable_model(factory: str, expected: str, folder: Path) -> None:
    (folder / "syntax.py").write_text("def build(:\n")
    (folder / "raises.py").write_text("raise ValueError('boom')\n")
    assert expected in refusal(spec_of(folder, factory))


def test_wrong_arguments_of_a_factory_are_told(folder: Path) -> None:
    assert "unexpected keyword argument 'width'" in refusal(spec_of(folder, arguments={"width": 3}))


def test_images_of_the_wrong_shape_are_told_with_their_shape(folder: Path) -> None:
    np.savez(folder / "test.npz", x=np.zeros((8, 5, 5), np.uint8), y=np.zeros(8, int))
    message = refusal(spec_of(folder))
    assert "fails on inputs of shape (1, 5, 5)" in message
    assert "16" in message
    assert "data.layout" in message


def test_a_factory_may_import_what_lies_beside_it(folder: Path) -> None:
    (folder / "beside.py").write_text("SCALE = 0\n")
    (folder / "uses.py").write_text(
        "from beside import SCALE\nfrom torch import nn\n"
        "def build(): return nn.Sequential(nn.Flatten(), nn.Linear(16, 3 + SCALE))\n"
    )
    first = load(spec_of(folder, "uses.py:build"), CPU)[0]
    assert len(first.classes) == 3
    (folder / "beside.py").write_text("SCALE = 0  # changed\n")
    assert load(spec_of(folder, "uses.py:build"), CPU)[0].sha256 != first.sha256


def test_a_factory_may_lie_in_another_folder(folder: Path) -> None:
    (folder / "audits").mkdir()
    spec = spec_of(folder / "audits", "../model.py:build")
    (folder / "test.npz").rename(folder / "audits" / "test.npz")
    assert len(load(spec, CPU)[0].classes) == 3


def test_a_factory_may_import_when_it_is_called(folder: Path) -> None:
    (folder / "later.py").write_text("def build():\n    from model import build\n    return build(4)\n")
    assert len(load(spec_of(folder, "later.py:build"), CPU)[0].classes) == 4


@pytest.mark.parametrize("factory", ["mapping", "output", "half", "half_output"])
def test_outputs_with_a_field_logits_and_half_precision_become_float32_logits(factory: str, folder: Path) -> None:
    target, samples = load(spec_of(folder, f"model.py:{factory}"), CPU)
    x = target.encode(samples.inputs[np.arange(4)])
    logits = target.module(x)
    assert logits.dtype == torch.float32
    assert logits.shape == (4, 3)
    inside = inner(target.module)
    plain = inside.get_submodule("body") if factory != "half" else inside
    dtype = next(plain.parameters()).dtype
    assert torch.equal(logits, plain(x.to(dtype)).float())


def test_probabilities_are_audited_on_their_logarithm_with_a_warning(folder: Path) -> None:
    target, samples = load(spec_of(folder, "model.py:softmax"), CPU)
    assert PROBABILITIES in target.warnings
    x = target.encode(samples.inputs[np.arange(5)])
    logits = inner(target.module).get_submodule("body")(x)
    assert torch.allclose(target.module(x), logits.log_softmax(1), atol=1e-5)


def test_a_random_model_is_noticed(folder: Path) -> None:
    assert RANDOM in load(spec_of(folder, "model.py:noisy"), CPU)[0].warnings
    assert RANDOM not in load(spec_of(folder), CPU)[0].warnings


def test_a_model_without_weights_is_the_same_every_time_and_says_so(folder: Path) -> None:
    state = torch.get_rng_state()
    first, second = (load(spec_of(folder), CPU)[0] for _ in range(2))
    assert torch.equal(first.module.state_dict()["1.weight"], second.module.state_dict()["1.weight"])
    assert first.sha256 == second.sha256
    assert first.warnings == (NO_WEIGHTS,)
    assert torch.equal(torch.get_rng_state(), state)


def _other_weights(folder: Path) -> None:
    save_file(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).state_dict(), folder / "m.safetensors")


def _other_source(folder: Path) -> None:
    (folder / "model.py").write_text(FACTORY + "\n# changed\n")


CHANGES: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "weights": (_other_weights, {}),
    "source": (_other_source, {}),
    "preprocessing": (lambda _: None, {"preprocessing": Preprocessing(mean=(0.1,), std=(1.0,))}),
    "arguments": (lambda _: None, {"arguments": {"k": 3}}),
    "classes": (lambda _: None, {"classes": ("a", "b", "c")}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_hash_covers_everything_the_answers_depend_on(what: str, folder: Path) -> None:
    _other_weights(folder)
    before = load(spec_of(folder, weights="m.safetensors"), CPU)[0].sha256
    assert before == load(spec_of(folder, weights="m.safetensors"), CPU)[0].sha256
    change, model = CHANGES[what]
    change(folder)
    assert load(spec_of(folder, weights="m.safetensors", **model), CPU)[0].sha256 != before


def test_classes_must_agree_with_the_outputs(folder: Path) -> None:
    named = spec_of(folder, classes=("a", "b"))
    assert "label is 2, but 2 classes are named" in refusal(named, DataError)
    assert "the model has 3 outputs, but 4 classes are named" in refusal(spec_of(folder, classes=tuple("abcd")))
    assert "a label is 2, but the model has 2 classes" in refusal(spec_of(folder, arguments={"k": 2}), DataError)
    target, samples = load(spec_of(folder, arguments={"k": 5}), CPU)
    assert target.classes == samples.classes == ("0", "1", "2", "3", "4")
    markup = ("<script>", "b", "c")
    assert load(spec_of(folder, classes=markup), CPU)[0].classes == markup


def test_resized_images_reach_the_model_in_its_size(folder: Path) -> None:
    np.savez(folder / "test.npz", x=np.full((4, 9, 7), 128, np.uint8), y=np.zeros(4, int))
    target, samples = load(spec_of(folder, preprocessing=Preprocessing(size=4)), CPU)
    assert target.encode(samples.inputs[np.arange(4)]).shape == (4, 1, 4, 4)


def test_tables_are_bounded_by_what_the_data_spans(folder: Path) -> None:
    x = np.linspace(-3, 5, 20 * 16).reshape(20, 16)
    np.savez(folder / "test.npz", x=x, y=np.arange(20) % 3)
    target, samples = load(spec_of(folder, modality="tabular"), CPU)
    assert target.bounds == (-3.0, 5.0)
    assert torch.equal(target.encode(samples.inputs[np.arange(3)]), torch.from_numpy(x[:3]).float())


@pytest.mark.parametrize("trust", [False, True])
def test_torchscript_needs_trust(trust: bool, folder: Path) -> None:
    model = linear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, torch.zeros(1, 1, 4, 4)), folder / "m.bin")
    spec = spec_of(folder, None, source="m.bin", trust=trust)
    if not trust:
        message = refusal(spec, UnsafeModelError)
        assert "can run code" in message
        assert "trust: true" in message
        return
    target, samples = load(spec, CPU)
    raw = samples.inputs[np.arange(3)]
    assert torch.allclose(target.logits(raw), model(target.encode(raw)), atol=1e-6)
    assert TRUSTED in target.warnings
    assert describe_target(target, spec.model).trusted


@pytest.mark.parametrize(
    ("content", "error", "expected"),
    [
        (b"\x08\x09\x12\x07pytorch\x1a\x052.0.0", UnsupportedError, "ONNX is not supported yet"),
        (b"GGUF" + bytes(40), UnsupportedError, "GGUF is not supported yet"),
        (b"\x80\x02}.", UnsafeModelError, "a bare pickle"),
        (b"", ModelError, "the file is empty"),
    ],
)
@pytest.mark.parametrize("field", ["weights", "source"])
def test_other_formats_are_refused_with_what_to_do(
    content: bytes, error: type[AuditError], expected: str, field: str, folder: Path
) -> None:
    (folder / "m.bin").write_bytes(content)
    factory = "model.py:build" if field == "weights" else None
    message = refusal(spec_of(folder, factory, **{field: "m.bin"}), error)
    assert expected in message
    if content:
        assert "safetensors" in message


def test_weights_named_as_a_model_and_missing_files(folder: Path) -> None:
    save_file(linear().state_dict(), folder / "m.safetensors")
    assert "it holds weights, but no model" in refusal(spec_of(folder, None, source="m.safetensors"))
    assert "no such file" in refusal(spec_of(folder, weights="absent.safetensors"))
    assert "this is a folder" in refusal(spec_of(folder, weights="."))
    assert "not supported yet" in refusal(spec_of(folder, None, source="https://host/model"), UnsupportedError)
    assert "neither parquet nor UTF-8 text" in refusal(spec_of(folder, modality="text"), DataError)
    (folder / "m.safetensors").write_bytes((folder / "m.safetensors").read_bytes()[:-8])
    assert "damaged safetensors file" in refusal(spec_of(folder, weights="m.safetensors"))
    torch.save([1, 2], folder / "m.pt")
    assert "no state dict inside (a list)" in refusal(spec_of(folder, weights="m.pt"))


def test_a_state_dict_cannot_shadow_its_own_methods(folder: Path) -> None:
    """A checkpoint may set attributes on an OrderedDict; loading does not look at them."""
    state = linear().state_dict()
    state.__dict__.update(itemz=torch.zeros(1), keyz=3)
    torch.save(state, folder / "honest.pt")
    with zipfile.ZipFile(folder / "honest.pt") as honest, zipfile.ZipFile(folder / "m.pt", "w") as hostile:
        for name in honest.namelist():
            hostile.writestr(name, honest.read(name).replace(b"itemz", b"items").replace(b"keyz", b"keys"))
    assert torch.load(folder / "m.pt", weights_only=True).keys == 3
    target, _ = load(spec_of(folder, weights="m.pt"), CPU)
    assert torch.equal(target.module.state_dict()["1.bias"], state["1.bias"])


def test_the_factory_may_live_in_an_installed_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pkg_of_user").mkdir()
    (folder / "pkg_of_user" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(folder)
    (folder / "pkg_of_user" / "parts.py").write_text("X = 1\n")
    (folder / "pkg_of_user" / "nets.py").write_text(FACTORY + "\nfrom .parts import X\n")
    first = load(spec_of(folder, "pkg_of_user.nets:build"), CPU)[0]
    assert len(first.classes) == 3
    (folder / "pkg_of_user" / "parts.py").write_text("X = 2\n")
    assert load(spec_of(folder, "pkg_of_user.nets:build"), CPU)[0].sha256 != first.sha256


def _files() -> dict[str, bytes]:
    """One file of each format that weights may have, around the same tensors."""
    state = linear().state_dict()
    new, old = io.BytesIO(), io.BytesIO()
    torch.save(state, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    return {"safetensors": save(state), "zip": new.getvalue(), "legacy": old.getvalue()}


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_weights_raises_anything_but_our_errors(kind: str, data: st.DataObject, folder: Path) -> None:
    content = bytearray(_files()[kind])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "m.bin").write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 9, 30]))])
    module = linear()
    try:
        load_weights(module, read_weights(folder / "m.bin"), "m.bin")
    except (ModelError, UnsafeModelError, UnsupportedError) as error:
        refused = str(error)
        assert "m.bin" in refused
    assert [tuple(value.shape) for value in module.state_dict().values()] == [(3, 16), (3,)]


def test_load_target_takes_samples_loaded_before(folder: Path) -> None:
    spec = spec_of(folder)
    _, samples = load(spec, CPU)
    target = load_target(replace(spec, data=DataSpec(source="elsewhere.npz")), CPU, samples)
    assert target.logits(samples.inputs[np.arange(3)]).shape == (3, 3)
