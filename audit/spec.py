"""The spec, ``audit.yaml``: what to audit, how, and what must hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from . import registry
from .errors import SpecError
from .spec_entries import check_references, read_entries
from .spec_overrides import apply_overrides
from .spec_problems import Problem, raise_problems, validated
from .yaml_lines import Document, Location, parse_yaml, read_yaml

if TYPE_CHECKING:
    from .checks.base import Check
    from .variants.base import Variant

_Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Preprocessing(_Part):
    """What the model wants done to images in 0..1, after scaling and before its first layer."""

    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(
        default=(), description="Subtracted per channel, in units of 0..1."
    )
    std: tuple[_Positive, ...] = Field(default=(), description="Divided by per channel, in units of 0..1.")
    size: Annotated[int, Field(ge=1, le=8192)] | tuple[int, int] | None = Field(
        default=None, description="Images are resized to this: one number for squares, or [height, width]."
    )

    max_length: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Texts are cut to so many tokens; the tokenizer's own limit when left out."
    )

    @model_validator(mode="after")
    def _lengths_agree(self) -> Preprocessing:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give one per channel for both")
        if isinstance(self.size, tuple) and not all(1 <= side <= 8192 for side in self.size):
            raise ValueError(f"size is {list(self.size)}: height and width must lie in 1..8192")
        return self


class ModelSpec(_Part):
    """The model under audit: exactly one of ``factory`` and ``source``."""

    factory: _Text | None = Field(
        default=None, description="Python that builds the model: file.py:callable beside the spec, or module:callable."
    )
    source: _Text | None = Field(default=None, description="A file or folder that holds architecture and weights.")
    weights: _Text | None = Field(
        default=None, description="A .safetensors file, or a weights-only .pt behind the scan."
    )
    modality: Literal["image", "text", "tabular"] = "image"
    preprocessing: Preprocessing = Preprocessing()
    classes: tuple[_Text, ...] | None = Field(default=None, description="Names of the classes, in order of the logits.")
    trust: bool = Field(default=False, description="Allow model formats that can run code when they are loaded.")
    arguments: dict[str, Any] = Field(default={}, description="Keyword arguments of the factory.")

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSpec:
        if (self.factory is None) == (self.source is None):
            raise ValueError("give exactly one of factory and source")
        return self


class DataSpec(_Part):
    """The samples to audit on: exactly one of ``source`` and ``factory``."""

    source: _Text | None = Field(
        default=None,
        description="An .npz file, a folder with one sub-folder per class, or a table of texts (csv, jsonl, parquet).",
    )
    factory: _Text | None = Field(default=None, description="Python that gives (inputs, labels): file.py:callable.")
    text: _Text | tuple[_Text, _Text] | None = Field(
        default=None, description="Column of the texts, or two columns for pairs; found by common names when left out."
    )
    label: _Text | None = Field(default=None, description="Column of the labels; found by common names when left out.")
    limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Use a random subset of this size, chosen by the seed."
    )
    classes: tuple[_Text, ...] | None = Field(default=None, description="Names of the classes, in order of the labels.")
    layout: Literal["hw", "hwc", "chw"] | None = Field(
        default=None, description="Order of an image's axes; found from the shape when left out."
    )
    arguments: dict[str, Any] = Field(default={}, description="Keyword arguments of the factory.")

    @model_validator(mode="after")
    def _one_origin(self) -> DataSpec:
        if (self.factory is None) == (self.source is None):
            raise ValueError("give exactly one of source and factory")
        return self


class GateSpec(_Part):
    """A condition on a metric; ``confidence: none`` compares the point estimate instead of the interval."""

    expression: _Text
    confidence: Literal["interval", "none"] = "interval"


class SpecFile(_Part):
    """The file as written; checks and variants are read by the classes that the registry names."""

    version: Literal[1] = Field(description="Version of this format.")
    name: Annotated[str, StringConstraints(max_length=200)] = Field(
        default="", description="What the report is called; the file's name when left out."
    )
    model: ModelSpec
    data: DataSpec
    checks: Annotated[tuple[Any, ...], Field(min_length=1)]
    variants: tuple[Any, ...] = ()
    gates: tuple[Any, ...] = ()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$")] | None = Field(
        default=None, description="auto, cpu, mps, cuda or cuda:N."
    )
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """A spec that was read and found valid.

    Attributes:
        checks: configured checks, ids filled in and unique.
        variants: configured variants besides the base, ids filled in and unique.
        raw: the plain mapping after overrides, as the record keeps it.
        base_dir: folder that relative paths start from.
        path: the file, or None for a spec made in Python.
    """

    name: str
    model: ModelSpec
    data: DataSpec
    checks: tuple[Check, ...]
    variants: tuple[Variant, ...]
    gates: tuple[GateSpec, ...]
    seed: int
    device: str | None
    batch_size: int | None
    raw: Mapping[str, Any]
    base_dir: Path
    path: Path | None = None

    def resolve(self, path: str) -> Path:
        """A path of the spec, relative ones from the spec's folder."""
        return self.base_dir / with_home(path)


def with_home(path: str | Path) -> Path:
    """``~`` and ``~name`` in front replaced; that of nobody known stays, as the name of a file."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Reads a spec file; ``overrides`` are ``key=value`` texts as of ``--set``.

    Raises:
        SpecError: with one line per problem: file, line, field, what is wrong, what was probably meant.
    """
    path = with_home(path)
    return _spec(read_yaml(path), path.parent, path, overrides)


def parse_spec(source: Mapping[str, Any] | str, base_dir: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """A spec from YAML text or a plain mapping.

    Raises:
        SpecError: as :func:`load_spec`.
    """
    document = parse_yaml(source) if isinstance(source, str) else Document(dict(source), {}, "spec")
    return _spec(document, Path(base_dir), None, overrides)


def spec_json_schema() -> dict[str, Any]:
    """The JSON Schema of the spec with every registered check and variant."""
    schema = SpecFile.model_json_schema()
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    kinds: dict[str, registry.Kind] = {"checks": "checks", "variants": "defenses"}
    for field, kind in kinds.items():
        names = registry.names(kind)
        branches: list[dict[str, Any]] = [{"enum": list(names)}]
        for name in names:
            entry = registry.load(kind, name).model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
            definitions |= {f"{name}.{key}": value for key, value in entry.pop("$defs", {}).items()}
            definitions[name] = entry
            branches.append(_one_key(name))
        schema["properties"][field]["items"] = {"anyOf": branches}
    definitions["GateSpec"] = GateSpec.model_json_schema()
    schema["properties"]["gates"]["items"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/GateSpec"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "auditorch spec", **schema}


def _one_key(name: str) -> dict[str, Any]:
    body = {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}
    return {"type": "object", "properties": {name: body}, "required": [name], "additionalProperties": False}


def _spec(document: Document, base_dir: Path, path: Path | None, overrides: Sequence[str]) -> Spec:
    if not isinstance(document.value, dict):
        raise SpecError(f"{document.name}: a spec is a mapping that starts with `version: 1`")
    raw = apply_overrides(document.value, overrides)
    problems: list[Problem] = []
    file = validated(SpecFile, raw, (), problems)
    checks = read_entries(raw, "checks", "checks", problems)
    variants = read_entries(raw, "variants", "defenses", problems)
    gates = _gates(raw, problems)
    check_references(raw, checks, gates, problems)
    raise_problems(problems, document)
    assert file is not None
    return Spec(
        name=file.name or (path.stem if path else "audit"),
        model=file.model,
        data=file.data,
        checks=checks,
        variants=variants,
        gates=tuple(gates.values()),
        seed=file.seed,
        device=file.device,
        batch_size=file.batch_size,
        raw=raw,
        base_dir=base_dir,
        path=path,
    )


def _gates(raw: Mapping[str, Any], problems: list[Problem]) -> dict[Location, GateSpec]:
    gates: dict[Location, GateSpec] = {}
    written = raw.get("gates")
    for i, gate in enumerate(written if isinstance(written, list | tuple) else ()):
        value = {"expression": gate} if isinstance(gate, str) else gate
        if isinstance(value, Mapping) and value.get("confidence", "") is None:
            value = {**value, "confidence": "none"}
        parsed = validated(GateSpec, value, ("gates", i), problems)
        if parsed is not None:
            gates["gates", i] = parsed
    return gates
