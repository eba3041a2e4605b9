"""Specs: what they mean, and that every mistake is answered with file, line, field and the nearest name."""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import jsonschema
import pytest
import yaml
from auditorch.attacks.threat import parse_eps
from auditorch.audit import registry
from auditorch.audit.checks.base import Check, Context
from auditorch.audit.errors import SpecError
from auditorch.audit.samples import Samples
from auditorch.audit.spec import Spec, load_spec, parse_spec, spec_json_schema
from auditorch.audit.target import Target
from auditorch.audit.variants.base import Built, Variant
from auditorch.reports.record import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, field_validator


class Toy(Check):
    metrics: ClassVar[Mapping[str, str]] = {"accuracy": "", "robust_accuracy": "", "robust_accuracy_at_EPS": ""}

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        raise NotImplementedError


class Evasion(Toy):
    name: ClassVar[str] = "evasion"
    norm: Literal["linf", "l2"] = "linf"
    eps: float | str = "8/255"
    steps: int = Field(default=10, ge=1)
    curve: tuple[float, ...] = ()

    @field_validator("eps")
    @classmethod
    def _radius(cls, eps: float | str) -> float:
        return parse_eps(eps)


class Performance(Toy):
    name: ClassVar[str] = "performance"


class Training(Variant):
    name: ClassVar[str] = "training"
    train: str
    epochs: int = 1

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        raise NotImplementedError


@dataclass
class Entry:
    name: str
    value: Any

    def load(self) -> Any:
        return self.value


@pytest.fixture(autouse=True, scope="module")
def toy_registry() -> Iterator[None]:
    """The real registry with other entries, so that these tests know every field."""
    entries = {
        "checks": [Entry("evasion", Evasion), Entry("performance", Performance)],
        "defenses": [Entry("training", Training)],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "BUILTIN", {"checks": {}, "defenses": {}, "attacks": {}})
        patch.setattr(registry, "_extensions", lambda kind: entries.get(kind, []))
        yield


GOOD = """\
version: 1
name: shop
model:
  factory: model.py:build
  weights: model.safetensors
  preprocessing: {mean: [0.5], std: [0.25]}
  arguments: {width: 8}
data:
  source: test.npz
  limit: 100
checks:
  - performance
  - evasion: {id: linf, norm: linf, eps: 8/255, steps: 5}
  - evasion: {id: l2, norm: l2, eps: 0.5, variants: [base, robust]}
variants:
  - training: {id: robust, train: train.npz}
gates:
  - linf.robust_accuracy >= 0.40
  - expression: robust:l2.robust_accuracy_at_0.25 >= 0.1
    confidence: none
seed: 7
"""


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def message(text: str, *overrides: str) -> str:
    with pytest.raises(SpecError) as error:
        parse_spec(text, ".", overrides)
    return str(error.value)


def test_a_good_spec_is_read_in_full(tmp_path: Path) -> None:
    file = tmp_path / "audit.yaml"
    file.write_text(GOOD)
    spec = load_spec(file)
    assert (spec.name, spec.seed, spec.data.limit) == ("shop", 7, 100)
    assert spec.model.preprocessing.std == (0.25,)
    assert spec.model.arguments == {"width": 8}
    assert [check.id for check in spec.checks] == ["performance", "linf", "l2"]
    evasion = spec.checks[1]
    assert isinstance(evasion, Evasion)
    assert evasion.eps == pytest.approx(8 / 255)
    assert [variant.id for variant in spec.variants] == ["robust"]
    assert [gate.confidence for gate in spec.gates] == ["interval", "none"]
    assert spec.resolve("test.npz") == tmp_path / "test.npz"
    assert spec.resolve("~/test.npz") == Path.home() / "test.npz"
    assert spec.resolve("~nobody-known/test.npz") == tmp_path / "~nobody-known" / "test.npz"
    assert spec.raw["checks"][1]["evasion"]["eps"] == "8/255"
    assert json.loads(json.dumps(spec.raw)) == spec.raw


def test_the_name_defaults_to_the_files(tmp_path: Path) -> None:
    file = tmp_path / "nightly.yaml"
    file.write_text(changed("name: shop\n", ""))
    assert load_spec(file).name == "nightly"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  - performance\n", "  - perfomance\n", "spec:12: checks[0]: unknown check 'perfomance'. Did you mean 'perf"),
        ("- training:", "- trainin:", "spec:16: variants[0].trainin: unknown defense 'trainin'. Did you mean"),
        ("steps: 5", "step: 5", "spec:13: checks[1].evasion.step: unknown field. Did you mean 'steps'?"),
        ("weights:", "weigths:", "spec:5: model.weigths: unknown field. Did you mean 'weights'?"),
        ("seed: 7", "sed: 7", "spec:21: sed: unknown field. Did you mean 'seed'?"),
        ("mean:", "means:", "spec:6: model.preprocessing.means: unknown field. Did you mean 'mean'?"),
        ("norm: l2", "norm: 12", "spec:14: checks[2].evasion.norm: got 12. "),
        ("norm: l2", "norm: linff", "norm: got 'linff'. Did you mean 'linf'?"),
        ("steps: 5", "steps: many", "checks[1].evasion.steps: expected a whole number, got 'many'"),
        ("steps: 5", "steps: 0", "checks[1].evasion.steps: must be greater than or equal to 1, got 0"),
        ("steps: 5", "curve: 3", "checks[1].evasion.curve: expected a list, got 3"),
        ("steps: 5", "curve: [1, x]", "checks[1].evasion.curve[1]: expected a number, got 'x'"),
        ("eps: 8/255", "eps: [1]", "checks[1].evasion.eps: expected a number or text, got a list"),
        ("eps: 8/255", "eps: -1", "eps is -1.0: it must be a finite number >= 0"),
        ("seed: 7", "seed: -1", "spec:21: seed: must be greater than or equal to 0, got -1"),
        ("version: 1", "version: 2", "spec:1: version: got 2"),
        ("version: 1\n", "", "version: required, but not given"),
        ("train: train.npz", "epochs: 1", "spec:16: variants[0].training.train: required, but not given"),
        ("factory: model.py:build", "source: m.onnx\n  factory: a:b", "model: give exactly one of factory and source"),
        ("std: [0.25]", "std: [0.25, 1]", "model.preprocessing: mean has 1 values and std 2"),
        ("std: [0.25]", "std: [0]", "model.preprocessing.std[0]: must be greater than 0, got 0"),
        ("id: l2", "id: linf", "spec:14: checks[2]: the id 'linf' is also that of checks[1]"),
        ("id: l2", "id: LINF", "the id 'LINF' is also that of checks[1]"),
        ("id: l2", "id: ../x", "checks[2].evasion.id: '../x' cannot be an id"),
        ("id: robust", "id: base", "the id 'base' means the untreated model"),
        ("[base, robust]", "[base, robst]", "checks[2].evasion.variants: no variant 'robst'. Did you mean 'robust'?"),
        ("- linf.rob", "- lnf.rob", "gates[0]: gate 'lnf.robust_accuracy >= 0.40': no check 'lnf'. Did you mean"),
        ("robust:l2.", "robbust:l2.", "no variant 'robbust'. Did you mean 'robust'?"),
        ("linf.robust_accuracy", "linf.robust_acuracy", "no metric 'robust_acuracy'. Did you mean 'robust_accuracy'?"),
        ("- linf.robust_accuracy >= 0.40", "- linf.robust_accuracy", "gates[0]: gate 'linf.robust_accuracy'"),
        ("    confidence: none", "    confidence: no", "gates[1].confidence: got 'no'. Did you mean 'none'?"),
        ("  - performance\n", "  - performance: {}\n    evasion: {}\n", "spec:12: checks[0]: expected a name"),
        ("  - performance\n", "  - performance: 3\n", "checks[0].performance: expected a mapping"),
        ("  - performance\n", "  - [performance]\n", "checks[0]: expected a name"),
        ("checks:", "variants2:", "checks: required, but not given"),
        ("data:\n  source: test.npz\n  limit: 100", "data: test.npz", "data: expected a mapping (key: value), got"),
        ("name: shop", "name: [a]", "spec:2: name: expected text, got a list"),
        ("name: shop", "name: a\nname: b", "spec:3: key 'name' is given twice (first on line 2)"),
        ("name: shop", f"name: {'x' * 300}", "spec:2: name: must have at most 200 characters, got"),
        ("seed: 7", f"{'x' * 900}: 7", "…"),
        ("checks:", "checks: []\nvariants2:", "checks: must have at least 1 item"),
        ("name: shop", "device: gpu\nname: shop", "spec:2: device: "),
        ("name: shop", "\tname: shop", "spec:2: a tab indents this line"),
        ("name: shop", "name: !!python/object/apply:os.system [x]", "tag '!!python/object/apply:os.system' is not"),
        ("name: shop", "name: &a [*a]", "an alias that contains itself"),
        ("name: shop", "<<: {a: 1}", "merge keys"),
        ("name: shop", "name: 'shop", "spec:"),
        (GOOD, "", "spec: empty"),
        (GOOD, "# nothing\n", "spec: empty"),
        (GOOD, "- a\n- b\n", "a spec is a mapping that starts with `version: 1`"),
        (GOOD, "a: " + "[" * 3000, "nested deeper than 40 levels"),
        (GOOD, "a: " + "9" * 5000, "cannot be read as int"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_place_and_remedy(old: str, new: str, expected: str) -> None:
    assert expected in message(changed(old, new))


def test_several_mistakes_are_told_at_once_in_order_of_lines() -> None:
    text = changed("limit: 100", "limit: x").replace("steps: 5", "step: 5").replace("seed: 7", "seed: z")
    lines = message(text).splitlines()
    assert [line.split(":")[1] for line in lines] == ["10", "13", "21"]


def test_one_mistake_is_told_once() -> None:
    """A check that cannot be read is still known to gates."""
    assert len(message(changed("steps: 5", "step: 5")).splitlines()) == 1


def test_aliases_unfold_only_so_far() -> None:
    bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    for previous, key in zip("abcdef", "bcdefg", strict=True):
        bomb += f"{key}: &{key} [{','.join([f'*{previous}'] * 10)}]\n"
    assert "more than 50,000 values" in message(bomb)


def test_yaml_reads_as_people_mean_it() -> None:
    text = changed("name: shop", "name: 2024-01-01").replace("{width: 8}", "{a: no, b: 1e-5, c: 1:30, d: 0x10, e: ~}")
    spec = parse_spec(text, ".")
    assert spec.name == "2024-01-01"
    assert spec.model.arguments == {"a": "no", "b": 1e-5, "c": "1:30", "d": 16, "e": None}


def test_numbers_and_markup_are_class_names() -> None:
    spec = parse_spec(changed("  limit: 100", "  classes: [0, 1, <script>alert(1)</script>]"), ".")
    assert spec.data.classes == ("0", "1", "<script>alert(1)</script>")


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "this is a folder"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"version: 1\nname: \xff\xfe\n"), "audit.yaml:2: not UTF-8 text"),
        (lambda path: path.write_bytes(b"a: 1\nb: \x00"), "audit.yaml:2: character #x0000 is not allowed"),
        (lambda path: path.write_bytes(b"#" * 1_100_000), "larger than 1 MB"),
        (lambda path: path.write_text("version: 1\n---\nversion: 1\n"), "a second document starts here"),
    ],
)
def test_files_that_are_no_specs(write: Any, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.yaml"
    write(path)
    with pytest.raises(SpecError, match=expected):
        load_spec(path)


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_spec(tmp_path / "a.yaml").name == "shop"


def steps(spec: Spec, i: int) -> int:
    check = spec.checks[i]
    assert isinstance(check, Evasion)
    return check.steps


def test_overrides_reach_by_path_and_by_id() -> None:
    spec = parse_spec(
        GOOD,
        ".",
        ["seed=3", "data.limit=9", "linf.steps=8", "checks.2.steps=4", "checks.2.evasion.norm=linf", "robust.epochs=6"],
    )
    assert (spec.seed, spec.data.limit, steps(spec, 1), steps(spec, 2)) == (3, 9, 8, 4)
    assert spec.checks[2].model_dump()["norm"] == "linf"
    assert spec.variants[0].model_dump()["epochs"] == 6
    assert spec.raw["checks"][1]["evasion"]["steps"] == 8
    assert parse_spec(GOOD, ".", ["performance.id=perf", "model.arguments.width=[1, 2]"]).model.arguments["width"] == [
        1,
        2,
    ]


def test_overrides_leave_the_given_mapping_alone() -> None:
    raw = yaml.safe_load(GOOD)
    before = copy.deepcopy(raw)
    parse_spec(raw, ".", ["linf.steps=8"])
    assert raw == before


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "write key=value"),
        ("=3", "write key=value"),
        ("lnf.eps=1", "no such place. Did you mean 'linf'?"),
        ("checks.9.eps=1", "no entry '9'; the list has 3"),
        ("checks.x.eps=1", "no entry 'x'"),
        ("seed.x=1", "seed is a plain value and has no parts"),
        ("linf.step=1", "checks[1].evasion.step: unknown field. Did you mean 'steps'?"),
        ("linf.steps=[", "--set linf.steps"),
    ],
)
def test_overrides_that_lead_nowhere(override: str, expected: str) -> None:
    assert expected in message(GOOD, override)


def test_the_schema_accepts_good_specs_and_refuses_wrong_ones() -> None:
    schema = spec_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    good = yaml.safe_load(GOOD)
    jsonschema.validate(good, schema)
    for key, value in (("sed", 1), ("checks", ["nothing"]), ("checks", [{"evasion": {"step": 1}}]), ("seed", -1)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**good, key: value}, schema)


def test_a_crashing_validator_of_a_third_party_is_a_clean_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Performance):
        @field_validator("id")
        @classmethod
        def _crash(cls, value: str) -> str:
            raise KeyError(value)

    monkeypatch.setattr(
        registry, "_extensions", lambda kind: [Entry("performance", Broken)] if kind == "checks" else []
    )
    text = "version: 1\nmodel: {factory: 'm:f'}\ndata: {source: x}\nchecks: [performance: {id: a}]\n"
    assert "checks[0].performance: not accepted (KeyError: 'a')" in message(text)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["performance", "linf"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, child in inner for place in places(child, (*at, key)))]


def mutate(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    value[place[0]] = mutate(value[place[0]], place[1:], new)
    return value


def accepted(source: Any) -> bool:
    """Whether a spec is accepted; anything but a SpecError with a message gets through to the test."""
    try:
        return len(parse_spec(source, ".").checks) > 0
    except SpecError as error:
        return not str(error)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_no_mutation_of_a_spec_raises_anything_but_a_spec_error(data: st.DataObject) -> None:
    raw = yaml.safe_load(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        raw = mutate(raw, data.draw(st.sampled_from(places(raw))), data.draw(JUNK))
    assert accepted(raw if isinstance(raw, dict) else json.dumps(raw)) in (True, False)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_no_mutation_of_the_text_raises_anything_but_a_spec_error(data: st.DataObject) -> None:
    text = GOOD
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 30)))
        piece = data.draw(
            st.text(max_size=4) | st.sampled_from(["&a ", "*a", "!!x ", "- ", ": ", "[", "{", '"', "\t", "|", "? "])
        )
        text = text[:start] + piece + text[end:]
    assert accepted(text) in (True, False)
