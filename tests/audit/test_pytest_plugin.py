"""The pytest plugin in runs of its own, and the assertions on a model whose answers are known."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.threat import Threat
from auditorch.audit import assertions
from auditorch.audit.assertions import (
    assert_accurate,
    assert_calibrated,
    assert_invariant,
    assert_private,
    assert_robust,
)
from auditorch.audit.checks import membership, performance
from auditorch.audit.errors import DataError, SpecError
from auditorch.audit.invariance import TEXT_CHANGES
from auditorch.audit.remembered import identity
from auditorch.audit.runner import run_audit
from auditorch.reports.schema import read_record
from torch import Tensor, nn

from .fakes import encode, linear_model, linf_optimum, toy_samples
from .runs import write_project

PRELOADED = (membership, performance, run_audit)  # pytester forgets what an inner run imports: do not pay each time


def data(n: int = 200, noise: float = 0.05) -> tuple[Tensor, Tensor]:
    samples = toy_samples(n, noise=noise)
    return encode(samples.inputs[np.arange(n)]), torch.from_numpy(samples.labels)


@pytest.fixture(autouse=True)
def alone(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner runs without hypothesis, which takes longer to import than the audit takes."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")


@pytest.fixture
def project(pytester: pytest.Pytester) -> Path:
    """A spec with one gate that passes and one that fails."""
    spec = write_project(pytester.path)
    spec.write_text(spec.read_text() + "  - performance.accuracy <= 0.5\n")
    return pytester.path


def test_a_spec_given_by_name_becomes_one_item_per_gate(pytester: pytest.Pytester, project: Path) -> None:
    done = pytester.runpytest_inprocess("audit.yaml", "-v", "--junitxml=junit.xml")
    done.assert_outcomes(passed=2, failed=1)
    done.stdout.fnmatch_lines(
        [
            "*audit.yaml::complete PASSED*",
            "*audit.yaml::gate[[]performance.accuracy >= 0.8] PASSED*",
            "*audit.yaml::gate[[]performance.accuracy <= 0.5] FAILED*",
            "performance.accuracy <= 0.5: fail, value * on 40 samples",
            "Report: *report.html",
            "*= audits =*",
            "toy: fail *report.html",
        ]
    )
    done.stdout.no_fnmatch_line("*Traceback*")
    properties = {
        item.get("name"): item.get("value")
        for case in ET.parse(project / "junit.xml").iter("testcase")
        if "<= 0.5" in (case.get("name") or "")
        for item in case.iter("property")
    }
    assert properties["auditorch_gate_verdict"] == "fail"
    assert properties["auditorch_n"] == "40"
    assert float(properties["auditorch_value"] or 0) > 0.9
    assert Path(properties["auditorch_report"] or "").is_file()


def test_k_selects_gates_and_the_audit_runs_once(pytester: pytest.Pytester, project: Path) -> None:
    pytester.runpytest_inprocess("audit.yaml", "-k", "0.8").assert_outcomes(passed=1, deselected=2)
    done = pytester.runpytest_inprocess("audit.yaml", "-v")
    done.stderr.fnmatch_lines(["*taken over from an earlier run*"])
    assert done.stderr.str().count("[1/1]") == 1


def test_options_reach_the_audit(pytester: pytest.Pytester, project: Path) -> None:
    arguments = ["--auditorch-output", "reports", "--auditorch-set", "data.limit=8", "--auditorch-device", "cpu"]
    pytester.runpytest_inprocess("audit.yaml", *arguments, "-p", "no:cacheprovider")
    [record] = (project / "reports").glob("audit-*/audit.json")
    assert read_record(record).data.n == 8


def test_other_files_are_left_alone(pytester: pytest.Pytester, project: Path) -> None:
    pytester.makepyfile("def test_own():\n    pass\n")
    (project / "sub").mkdir()
    (project / "sub/audit.yaml").write_text("name: someone else's\nrules: []\n")
    pytester.runpytest_inprocess().assert_outcomes(passed=1)
    pytester.runpytest_inprocess("-o", "auditorch_collect=true").assert_outcomes(passed=3, failed=1)


def test_a_spec_with_a_mistake_is_a_clean_collection_error(pytester: pytest.Pytester, project: Path) -> None:
    (project / "audit.yaml").write_text((project / "audit.yaml").read_text().replace("[performance]", "[perfomance]"))
    done = pytester.runpytest_inprocess("audit.yaml")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*audit.yaml:5: *Did you mean 'performance'*"])
    done.stdout.no_fnmatch_line("*Traceback*")


def test_a_model_that_cannot_be_loaded_is_a_clean_failure(pytester: pytest.Pytester, project: Path) -> None:
    (project / "model.safetensors").unlink()
    done = pytester.runpytest_inprocess("audit.yaml", "-x")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*model.safetensors: no such file"])
    done.stdout.no_fnmatch_line("*Traceback*")


def test_an_audit_that_did_not_finish_fails_even_where_gates_pass(pytester: pytest.Pytester, project: Path) -> None:
    spec = (
        (project / "audit.yaml").read_text().replace("[performance]", "[performance, {membership: {train: test.npz}}]")
    )
    (project / "audit.yaml").write_text(spec.replace("  - performance.accuracy <= 0.5\n", ""))
    done = pytester.runpytest_inprocess("audit.yaml")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["base:membership: all 40 non-members are in the training set*"])


def test_it_works_under_xdist(pytester: pytest.Pytester, project: Path) -> None:
    done = pytester.runpytest_subprocess("audit.yaml", "-n", "2", "-p", "no:randomly")
    done.assert_outcomes(passed=2, failed=1)
    done.stdout.fnmatch_lines(["*= audits =*", "toy: fail *report.html"])


def test_the_fixture_measures_tensors(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import torch

        def test_fixture(audit):
            x = torch.full((50, 1, 2, 2), 0.5)
            model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
            y = model(x).argmax(1)
            assert audit.accuracy(model, x, y).value == 1
            measured = audit.evasion(model, x, y, norm="linf", eps=0.0001)
            assert measured.metric.n == 50 and 0 <= measured.value <= 1
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_the_fixture_remembers_what_it_measured(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest, torch
        from auditorch.audit import assertions

        @pytest.mark.parametrize("scale", [1.0, 2.0])
        def test_fixture(audit, scale, monkeypatch, request):
            torch.manual_seed(0)
            x = torch.rand(50, 4)
            model = torch.nn.Sequential(torch.nn.Linear(4, 3))
            y = model(x).argmax(1)
            calls = []
            measure = assertions.accuracy
            def counted(*args, **options):
                calls.append(1)
                return measure(*args, **options)
            counted.__name__ = "accuracy"
            monkeypatch.setattr(assertions, "accuracy", counted)
            known = audit.assert_accurate(model, x * scale, y, at_least=0.1)
            assert known == audit.accuracy(model, x * scale, y)
            print("measured", len(calls))
        """
    )
    for expected in (1, 0):
        done = pytester.runpytest_inprocess("-s")
        done.assert_outcomes(passed=2)
        assert done.stdout.str().count(f"measured {expected}") == 2
    pytester.runpytest_inprocess("-s", "--cache-clear").stdout.fnmatch_lines(["*measured 1*"])
    done = pytester.runpytest_inprocess("-s", "-p", "no:cacheprovider")
    done.stdout.fnmatch_lines(["*measured 2*"])


def test_a_model_is_known_by_weights_structure_and_source() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    same = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    same.load_state_dict(model.state_dict())
    assert identity(model) == identity(same)
    other = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    other.load_state_dict(model.state_dict())
    assert identity(other) != identity(model)
    with torch.no_grad():
        same.get_parameter("0.bias")[0] += 1e-6
    assert identity(same) != identity(model)
    assert identity(lambda x: x) is None
    made = type("Made", (nn.Module,), {})()
    vars(made)["hook"] = len
    assert identity(made) is None


def test_threats_run_a_test_once_for_each(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.threats("linf 8/255", ("l2", 0.5))
        def test_marked(threat):
            assert (threat.norm, round(threat.eps, 4)) in [("linf", 0.0314), ("l2", 0.5)]

        def test_unmarked(threat):
            pass

        @pytest.mark.threats("linf 8/255")
        def test_without(): pass
        """
    )
    done = pytester.runpytest_inprocess("-v")
    done.assert_outcomes(passed=3, errors=1)
    done.stdout.fnmatch_lines(["*test_marked[[]linf-8:255] PASSED*", "*test_marked[[]l2-0.5] PASSED*"])
    done.stdout.fnmatch_lines(["*mark the test with its threat models*"])
    pytester.runpytest_inprocess("-k", "l2").assert_outcomes(passed=1, deselected=3)


def test_a_threat_that_cannot_be_read_is_a_clean_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.threats('linf')\ndef test_marked(threat): pass\n")
    done = pytester.runpytest_inprocess()
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*threats are written as norm and radius*not 'linf'*"])


def test_the_plugin_needs_no_torch_until_it_is_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import sys\n\ndef test_light():\n    assert 'torch' not in sys.modules\n")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    done = pytester.runpytest_subprocess("--help")
    done.stdout.fnmatch_lines(["auditorch (model audits):", "*--auditorch-output=DIR*"])


def test_robust_accuracy_is_the_share_beyond_the_optimum() -> None:
    samples = toy_samples(120, contrast=0.08, noise=0.1)
    x, y = encode(samples.inputs[np.arange(120)]), torch.from_numpy(samples.labels)
    optimum = linf_optimum(samples)
    eps = float(optimum.median())
    measured = assertions.evasion(linear_model(), x, y, eps=eps, attack=PGD(steps=20))
    assert measured.value == pytest.approx(float((optimum > eps).double().mean()), abs=0.02)
    assert measured.interval[0] < measured.value < measured.interval[1]


def test_a_robust_model_passes_and_a_brittle_one_fails_with_its_numbers() -> None:
    x, y = data()
    measured = assert_robust(linear_model(), x, y, eps=0.01, at_least=0.9)
    assert measured.value == 1.0
    with pytest.raises(AssertionError) as caught:
        assert_robust(linear_model(), x, y, eps="64/255", at_least=0.4, attack="fgsm")
    text = str(caught.value)
    assert text.startswith(
        "robust accuracy is 0.0 % (0.0–1.9) on 200 samples (FGSM within linf 0.251), wanted >= 0.4: fail"
    )
    assert "broken with the smallest change:\n  sample " in text
    assert text.count("after a change of linf") == 5


def test_the_worst_samples_are_those_that_break_first() -> None:
    x, y = data(40)
    y = y.clone()
    y[7] = (y[7] + 1) % 4
    with pytest.raises(AssertionError, match=r"sample 7: label \d, predicted \d without any change"):
        assert_robust(linear_model(), x, y, eps=0.2, at_least=1, attack="fgsm")


def test_too_few_samples_are_inconclusive_unless_the_estimate_may_decide() -> None:
    x, y = data(20)
    with pytest.raises(AssertionError, match=r"inconclusive\n.*about \d+ samples \(now 20\)"):
        assert_accurate(linear_model(), x, y, at_least=0.9)
    assert assert_accurate(linear_model(), x, y, at_least=0.9, confidence="none").value == 1.0


def test_accuracy_names_the_surest_errors() -> None:
    x, y = data(60)
    y = y.clone()
    y[3] = (y[3] + 1) % 4
    with pytest.raises(AssertionError, match=r"wrong with the highest confidence:\n  sample 3: label"):
        assert_accurate(linear_model(), x, y, at_least=0.999)


def test_a_leaking_model_fails_and_a_blind_one_passes() -> None:
    generator = torch.Generator().manual_seed(0)
    members, nonmembers = (torch.rand((300, 8), generator=generator) for _ in range(2))
    labels = torch.zeros(300, dtype=torch.int64)

    class Remembers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            known = (x[:, None] == members[None]).all(2).any(1).float()
            return torch.stack([5 * known, torch.zeros_like(known)], 1) + 1e-3 * x[:, :2]

    with pytest.raises(
        AssertionError, match=r"(?s)tpr at fpr is 100\.0 %.*wanted <= 0\.1: fail.*most exposed:\n  member"
    ):
        assert_private(Remembers(), (members, labels), (nonmembers, labels), at_most=0.1)
    measured = assert_private(
        nn.Linear(8, 2, device="cpu"), (members, labels), (nonmembers, labels), at_most=0.1, fpr=0.01
    )
    assert measured.value < 0.1


def test_too_few_nonmembers_cannot_show_privacy() -> None:
    x, y = data(40)
    with pytest.raises(DataError, match="needs at least 100 non-members, not 40"):
        assert_private(linear_model(), (x, y), (x, y), at_most=0.5)


def test_an_overconfident_model_fails_and_a_calibrated_one_passes() -> None:
    generator = torch.Generator().manual_seed(0)
    p = 0.5 + 0.5 * torch.rand(4000, generator=generator)
    y = (torch.rand(4000, generator=generator) > p).long()
    logits = torch.stack([p.log(), (1 - p).log()], 1)
    assert assert_calibrated(nn.Identity(), logits, y, at_most=0.05).metric.n == 4000
    with pytest.raises(AssertionError, match=r"(?s)ece is .* wanted <= 0\.05: fail.*furthest off:\n  confidence 0\.\d"):
        assert_calibrated(nn.Identity(), 5 * logits, y, at_most=0.05)


TEXTS = [f"Film number {i} was {'good' if i % 2 else 'bad'} throughout." for i in range(80)]


def sentiment(texts: Sequence[str]) -> list[dict[str, object]]:
    """Knows one word, in small letters."""
    return [{"label": "positive" if "good" in text else "negative", "score": 0.9} for text in texts]


def test_a_brittle_text_model_is_not_invariant() -> None:
    assert assert_invariant(sentiment, TEXTS, "whitespace", at_least=0.9).value == 1.0
    with pytest.raises(AssertionError) as caught:
        assert_invariant(sentiment, TEXTS, ["case", "punctuation"], at_least=0.9)
    text = str(caught.value)
    assert text.startswith("invariant share is 50.0 % (39.3–60.7) on 80 samples (480 changes by case, punctuation)")
    assert "sample 1: positive becomes negative under case: 'Film number 1 was good throughout.' -> 'FILM" in text


def test_any_function_may_change_any_input() -> None:
    x, _ = data(40)

    def darker(image: Tensor) -> list[Tensor]:
        return [image * 0.99, image * 0.98]

    def stacked(images: Sequence[Tensor]) -> Tensor:
        return linear_model()(torch.stack(list(images)))

    assert assertions.invariance(stacked, list(x), darker).value == 1.0
    assert assertions.invariance(stacked, list(x), lambda image: 1 - image).value < 1.0


def test_text_changes_are_small_and_always_the_same() -> None:
    for name, change in TEXT_CHANGES.items():
        for text in (*TEXTS[:3], "", "a", "!?"):
            forms = change(text)
            assert forms == change(text), name
            assert all(abs(len(form) - len(text)) <= max(4, len(text.split())) for form in forms)
    assert all(form != TEXTS[0] for form in TEXT_CHANGES["typos"](TEXTS[0]))


def test_invariance_refuses_what_it_cannot_judge() -> None:
    with pytest.raises(UnsupportedError, match="Did you mean 'typos'"):
        assert_invariant(sentiment, TEXTS, "typo", at_least=0.5)
    with pytest.raises(DataError, match="no inputs"):
        assert_invariant(sentiment, [], "typos", at_least=0.5)
    with pytest.raises(DataError, match="1 answers to"):
        assert_invariant(lambda texts: ["a"], TEXTS, "typos", at_least=0.5)


def test_a_whole_threat_may_be_given() -> None:
    x, y = data(40)
    threat = Threat("linf", 0.01)
    assert assert_robust(linear_model(), x, y, threat, at_least=0.8).how.endswith("linf 0.01")


def test_wrong_arguments_are_told() -> None:
    x, y = data(8)
    with pytest.raises(SpecError, match="Did you mean 'pgd'"):
        assert_robust(linear_model(), x, y, at_least=0.1, attack="pdg")
    with pytest.raises(UnsupportedError, match="norm"):
        assert_robust(linear_model(), x, y, "l3", at_least=0.1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match=r"labels \(7,\)"):
        assert_accurate(linear_model(), x, y[:7], at_least=0.1)
    with pytest.raises(DataError, match="inputs have shape"):
        assert_accurate(linear_model(), x[:0], y[:0], at_least=0.1)


def test_the_model_is_given_back_as_found() -> None:
    x, y = data(16)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 4)).train()
    assertions.accuracy(model, x, y)
    assertions.evasion(model, x, y, attack="fgsm")
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
