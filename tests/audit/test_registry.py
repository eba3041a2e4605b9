"""The registry: every name loads, unknown names are answered with the nearest, extensions are found."""

import dataclasses
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import get_args

import pytest
from auditorch.attacks.text.recipes import RECIPES
from auditorch.audit import catalog, registry
from auditorch.audit.checks.base import Check
from auditorch.audit.errors import SpecError
from auditorch.audit.variants.base import Variant

CHECKS = registry.names("checks")
ATTACKS = registry.names("attacks")
DEFENSES = registry.names("defenses")


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_says_what_a_reader_needs(name: str) -> None:
    check = registry.load("checks", name)
    assert issubclass(check, Check)
    assert check.name == name
    assert check.title
    assert check.question.endswith("?")
    assert check.references
    assert check.metrics
    assert all(text.endswith(".") for text in check.metrics.values())
    assert check.cost
    assert [field for field, info in check.model_fields.items() if not info.description] == []


@pytest.mark.parametrize("name", DEFENSES)
def test_a_variant_says_what_a_reader_needs(name: str) -> None:
    variant = registry.load("defenses", name)
    assert issubclass(variant, Variant)
    assert variant.name == name
    assert variant.title
    assert variant.references
    assert [field for field, info in variant.model_fields.items() if not info.description] == []


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_a_frozen_dataclass_with_its_paper(name: str) -> None:
    attack = registry.load("attacks", name)
    assert dataclasses.is_dataclass(attack)
    assert attack.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    assert attack.__doc__


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("checks", "evason", "unknown check 'evason'. Did you mean 'evasion'?"),
        ("attacks", "pdg", "unknown attack 'pdg'. Did you mean 'pgd'?"),
        ("defenses", "dpsgd", "unknown defense 'dpsgd'. Did you mean 'dp_sgd'?"),
        ("checks", "zzzzzzzz", "Known: attribut"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(kind: registry.Kind, name: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        registry.load(kind, name)
    assert message in str(caught.value)


def test_third_parties_add_names_but_cannot_replace_built_in_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "auditorch.checks": [
            EntryPoint("theirs", "types:SimpleNamespace", "auditorch.checks"),
            EntryPoint("evasion", "types:SimpleNamespace", "auditorch.checks"),
        ]
    }
    monkeypatch.setattr(registry, "entry_points", lambda group: found.get(group, []))
    assert registry.names("checks")[-1] == "theirs"
    assert registry.names("checks").count("evasion") == 1
    assert registry.load("checks", "theirs") is SimpleNamespace
    assert registry.load("checks", "evasion") is not SimpleNamespace


@pytest.mark.parametrize("kind", get_args(registry.Kind))
def test_the_catalog_describes_everything_registered(kind: registry.Kind) -> None:
    rows = dict(catalog.listing(kind))
    assert tuple(rows) == registry.names(kind)
    for name, text in rows.items():
        assert text
        assert "cannot be loaded" not in text
        assert f"{kind.removesuffix('s')} {name}" in catalog.description(name)


def test_the_catalog_tells_defaults_and_descriptions() -> None:
    text = catalog.description("performance")
    assert "  bins (int, default 15): Equal-width confidence bins of the calibration error." in text
    assert "  accuracy: Share of samples classified as labelled." in text
    assert "steps (int, default" in catalog.description("pgd")
    with pytest.raises(SpecError, match="Did you mean 'evasion'"):
        catalog.description("evasoin")
    assert ("performance.accuracy", "Share of samples classified as labelled.") in catalog.metrics()


def test_text_attacks_are_listed_and_described_beside_those_on_tensors() -> None:
    rows = dict(catalog.text_attacks())
    assert tuple(rows) == tuple(RECIPES)
    assert all(rows.values())
    assert not set(rows) & set(registry.names("attacks"))
    assert rows["pwws"] in catalog.description("pwws")
    assert "text_evasion: {attack: pwws}" in catalog.description("pwws")
    with pytest.raises(SpecError, match="Did you mean 'deepwordbug'"):
        catalog.description("deepwordbugs")
