"""Which words decide, whether that can be believed, and whether it survives small edits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from ...attacks.models import attacking
from ...attacks.statistics import bootstrap_sums, percentile_interval
from ...attacks.text.passage import Passage
from ...attacks.text.resources.places import word_lists
from ...attacks.text.victim import broken
from ...reports.record import Chart, Excerpt, Excerpts, Figure, Finding, Line, Metric, Result, Table
from ..attribution.findings import STANDARDS
from ..samples import Samples
from ..target import Access, Modality, Target
from .base import Check, Claim, Context
from .images import verdict
from .metrics import by_name, estimate
from .outputs import same_predictions
from .text_constraints import as_guarded, keeps, missing_guards, recipe_of
from .text_evidence import pack_edits, unpack_edits
from .text_inputs import Texts
from .text_moves import (
    WHITE_BOX_ATTACKS,
    Attack,
    Attacked,
    attack_of,
    attacked,
    coloured,
    elsewhere,
    excerpt,
    moves,
    services_of,
    slipped,
    top_count,
    top_overlap,
)
from .text_relevance import CONTROL, WHITE_BOX, Method, Words, relevance, without

METHODS: tuple[Method, ...] = ("integrated_gradients", "input_x_gradient", "occlusion", "kernel_shap", "lime")
"""What runs unless told otherwise; saliency has no sign, so it cannot tell words for a class from words against it."""
_PARTS = 8
"""Steps of the deletion and insertion curves."""


@dataclass(frozen=True, slots=True)
class Explained:
    """One method on n texts.

    Attributes:
        words: relevance of each word for the predicted class, one array a text.
        curves: ``(n, 2, parts + 1)``, probability of that class as words go (deletion) and come (insertion).
        slips: relevance of the words for the same class after slips of the finger.
        after: the same in the adversarial versions, one array for each text that has one.
    """

    words: Words
    curves: NDArray[np.float64]
    slips: Words
    after: Words

    @property
    def overlap(self) -> NDArray[np.float64]:
        """``(n,)``, share of the most relevant fifth of the words that is the same after slips."""
        return np.array([top_overlap(own, other) for own, other in zip(self.words, self.slips, strict=True)])

    @property
    def areas(self) -> NDArray[np.float64]:
        """Areas ``(n, 2)`` under both curves."""
        return np.asarray(np.trapezoid(self.curves, dx=1 / _PARTS, axis=2))


class TextAttribution(Check):
    """Relevance of words by Captum's methods, tokens joined to words, each beside a random control.

    A believable ranking makes the probability fall early when its first words go, and rise early when they come. It
    should also stay when the text is edited: by slips of the finger, and by an attack that makes the model err. Words
    are compared place by place, by their relevance for the class that the model named first.
    """

    name: ClassVar[str] = "text_attribution"
    version: ClassVar[int] = 3
    title: ClassVar[str] = "Explanations of texts"
    question: ClassVar[str] = "Why does it decide so?"
    requires: ClassVar[frozenset[Access]] = frozenset({"scores"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    references: ClassVar[tuple[str, ...]] = (
        "Sundararajan et al., Axiomatic Attribution for Deep Networks, arXiv 1703.01365",
        "Simonyan et al., Deep Inside Convolutional Networks (saliency), arXiv 1312.6034",
        "Ribeiro et al., Why Should I Trust You? (LIME), arXiv 1602.04938",
        "Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, arXiv 1705.07874",
        "Li et al., Understanding Neural Networks through Representation Erasure, arXiv 1612.08220",
        "Petsiuk et al., RISE (deletion and insertion), arXiv 1806.07421",
        "Ivankay et al., Fooling Explanations in Text Classifiers, arXiv 2206.03178",
        "Kokhlikyan et al., Captum, arXiv 2009.07896",
    )
    standards: ClassVar[tuple[str, ...]] = STANDARDS
    metrics: ClassVar[Mapping[str, str]] = {
        "METHOD_deletion_gain": "By how much less area lies under the deletion curve than for random order.",
        "METHOD_insertion_gain": "By how much more area lies under the insertion curve than for random order.",
        "METHOD_top_overlap_edited": "Share of the most relevant fifth of the words that is still among them after "
        "slips of the finger that change no prediction.",
        "METHOD_top_overlap_attacked": "The same in adversarial versions: mean over the texts for which one was found.",
        "METHOD_rank_correlation_attacked": "Spearman correlation of all words' relevance before and after the attack.",
    }
    cost: ClassVar[str] = "some two hundred passes per text and method"

    methods: tuple[Method, ...] = Field(default=METHODS, min_length=1, description="Methods to compare.")
    samples: int = Field(default=16, ge=2, description="How many texts to explain, evenly spaced.")
    steps: int = Field(
        default=32, ge=2, description="Points of Integrated Gradients, fewest draws of KernelShap and LIME."
    )
    column: Literal["first", "second"] = Field(default="second", description="Which text of a pair is explained.")
    attack: Attack | None = Field(
        default="characters", description="Attack that may move explanations; none: no attack."
    )
    queries: int = Field(default=100, ge=2, description="Most versions of a text that the attack may try.")
    gallery: int = Field(default=6, ge=0, description="How many texts to show.")

    @field_validator("methods")
    @classmethod
    def _once(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        return tuple(dict.fromkeys(methods))

    def required(self) -> frozenset[Access]:
        white_box = set(self.methods) & WHITE_BOX or self.attack in WHITE_BOX_ATTACKS
        return frozenset({"gradients" if white_box else "scores"})

    def surroundings(self) -> dict[str, int]:
        return word_lists()

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        texts = Texts.of(target, samples, self.samples, int(self.column == "second"))
        context.progress.start(self.title, len(self.methods) + 2)
        with attacking(target.module):
            base = texts.logits(texts.raws)
            texts.require_finite(base)
            versions = self._versions(texts, base, context)
            found = {name: self._explained(name, texts, versions, context) for name in (CONTROL, *self.methods)}
        metrics = tuple(_metrics(found, versions.fallen, context.seed))
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=_summary(metrics, self.attack),
            status="ok",
            parameters={**self.model_dump(exclude={"id", "variants"}), **self._recipe(texts)},
            metrics=metrics,
            findings=tuple(_findings(metrics, self.methods)),
            figures=tuple(_figures(texts, base, found, versions.fallen, metrics, self.gallery)),
            evidence=(context.evidence("attributions", _tensors(texts, base, found, versions.fallen)),),
            warnings=tuple(self._warnings(texts, versions.fallen)),
            not_covered=(
                "Whether a person finds the explanation plausible; interactions of words.",
                "Attacks that aim at the explanation and leave the prediction alone."
                if self.attack
                else "Whether an attack moves the explanations.",
            ),
            references=self.references,
            standards=self.standards,
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        texts = Texts.of(target, samples, self.samples, int(self.column == "second"))
        recorded = context.read_evidence(result.evidence[0])
        same = np.array_equal(recorded["ids"].numpy(), texts.samples.ids)
        yield Claim("the explained texts are the audited ones", same)
        if not same:
            return
        with attacking(target.module):
            base = texts.logits(texts.raws)
            agree = same_predictions(base, recorded["base_logits"])
            yield Claim("the model predicts as recorded", bool(agree.all()), f"{agree.sum()} of {len(agree)}")
            fallen = Attacked(unpack_edits(recorded, len(texts)), 0, recorded["adv_logits"])
            if self.attack is not None:
                yield from self._verify_attack(self.attack, texts, fallen, result, context)
            found, classes = {}, recorded["base_logits"].argmax(1)
            for name in (CONTROL, *self.methods):
                found[name] = one = _recorded(name, texts, recorded, fallen)
                curves = self._curves(texts, classes, one.words)
                ok = bool(np.abs(curves - one.curves).max() < 1e-3)
                yield Claim(f"the curves of {name} follow from its relevances", ok)
                yield self._found_again(name, texts, classes, one, fallen, context)
        again = by_name(_metrics(found, fallen, context.seed))
        for metric in result.metrics:
            other = again.get(metric.name)
            ok = other is not None and abs((other.value or 0) - (metric.value or 0)) < 1e-9
            yield Claim(f"{metric.name} follows from the evidence", ok)

    def _verify_attack(
        self, name: Attack, texts: Texts, fallen: Attacked, result: Result, context: Context
    ) -> Iterator[Claim]:
        """Whether the versions keep the attack's constraints and make the model err, as plain strings."""
        attack, rows, passages = attack_of(name, texts), fallen.rows, fallen.passages(texts)
        attack = as_guarded(attack, result.parameters)
        services = services_of(attack, texts, context)
        kept = sum(
            keeps(attack, services, row, Passage.of(texts.text(row)), passage)
            for row, passage in zip(rows, passages, strict=True)
        )
        yield Claim("adversarial texts keep every constraint", kept == len(rows), f"{kept} of {len(rows)}")
        hits = 0
        if rows:
            logits = texts.logits([texts.with_text(row, one.text) for row, one in zip(rows, passages, strict=True)])
            hits = int(broken(logits, texts.y[torch.tensor(rows)], targeted=False).sum())
        yield Claim("the model errs on the adversarial texts", hits == len(rows), f"{hits} of {len(rows)}")

    def _found_again(
        self, name: str, texts: Texts, classes: Tensor, one: Explained, fallen: Attacked, context: Context
    ) -> Claim:
        """Explains the first text, and the first adversarial version, once more."""
        rows, passages, kept = [0], [Passage.of(texts.text(0))], [one.words[0]]
        if fallen.rows:
            rows, passages, kept = [0, fallen.rows[0]], [*passages, fallen.passages(texts)[0]], [*kept, one.after[0]]
        again = relevance(name, texts, rows, passages, classes[torch.tensor(rows)], self.steps, context.seed)
        gaps = (
            np.abs(a - b).max(initial=0) / max(1e-3, np.abs(b).max(initial=0)) for a, b in zip(again, kept, strict=True)
        )
        return Claim(f"{name} finds the recorded relevances again", max(gaps) < 1e-2, f"{len(rows)} texts")

    def _versions(self, texts: Texts, base: Tensor, context: Context) -> _Versions:
        classes = base.argmax(1)
        fallen = Attacked([{} for _ in range(len(texts))], 0, base.clone())
        if self.attack is not None:
            fallen = attacked(self.attack, texts, self.queries, context)
        context.progress.advance()
        return _Versions(classes, slipped(texts, classes, context), fallen)

    def _explained(self, name: str, texts: Texts, versions: _Versions, context: Context) -> Explained:
        rows, fallen, classes = range(len(texts)), versions.fallen, versions.classes

        def explain(rows: Sequence[int], passages: Sequence[Passage]) -> Words:
            of_rows = classes[torch.tensor(rows, dtype=torch.int64)]
            return relevance(name, texts, rows, passages, of_rows, self.steps, context.seed)

        words = explain(rows, [Passage.of(texts.text(row)) for row in rows])
        slips, after = explain(rows, versions.slips), explain(fallen.rows, fallen.passages(texts))
        context.progress.advance()
        return Explained(words, self._curves(texts, classes, words), slips, after)

    def _recipe(self, texts: Texts) -> dict[str, dict[str, str]]:
        return {} if self.attack is None else {"recipe": recipe_of(attack_of(self.attack, texts))}

    def _warnings(self, texts: Texts, fallen: Attacked) -> Iterator[str]:
        if self.attack is None:
            return
        yield from missing_guards(attack_of(self.attack, texts))
        n = len(fallen.rows)
        if n < 2:
            yield f"{self.attack} broke {n} of {fallen.tried} texts: how it moves explanations is not known."

    def _curves(self, texts: Texts, classes: Tensor, words: Words) -> NDArray[np.float64]:
        """Probability of the class ``(n, 2, parts + 1)`` as the most relevant words go, and as they come."""
        rows, versions = [], []
        for row, values in enumerate(words):
            passage = Passage.of(texts.text(row))
            rank = np.empty(len(values), dtype=np.int64)
            rank[np.argsort(-values, kind="stable")] = np.arange(len(values))
            for part in range(_PARTS + 1):
                gone = rank < round(part * len(values) / _PARTS)
                versions += [without(passage, list(~gone)), without(passage, list(gone))]
                rows += [row, row]
        logits = texts.logits([texts.with_text(row, text) for row, text in zip(rows, versions, strict=True)])
        of_class = logits.double().softmax(1).gather(1, classes[torch.tensor(rows)][:, None])[:, 0]
        return of_class.view(len(words), _PARTS + 1, 2).transpose(1, 2).numpy().copy()


@dataclass(frozen=True, slots=True)
class _Versions:
    """What each text is compared with.

    Attributes:
        classes: int64 ``(n,)``, predictions on the originals: what is explained.
    """

    classes: Tensor
    slips: Sequence[Passage]
    fallen: Attacked


def _metrics(found: Mapping[str, Explained], fallen: Attacked, seed: int) -> Iterator[Metric]:
    control = found[CONTROL].areas
    for name, one in found.items():
        if name == CONTROL:
            continue
        gains = (control[:, 0] - one.areas[:, 0], one.areas[:, 1] - control[:, 1])
        for kind, values in zip(("deletion", "insertion"), gains, strict=True):
            yield _mean(f"{name}_{kind}_gain", values, f"{spoken(name)}: {kind} gain over random order")
        yield _mean(f"{name}_top_overlap_edited", one.overlap, f"{spoken(name)}: top words that stay after slips")
        yield from moves(name, spoken(name), one.words, one.after, fallen.rows, seed)


def _mean(name: str, values: NDArray[np.float64], label: str) -> Metric:
    interval = percentile_interval(bootstrap_sums(values[:, None])[:, 0] / len(values))
    value = float(values.mean())
    return estimate(name, value, interval, len(values), label=label, higher_is_better=True, method="bootstrap")


def spoken(name: str) -> str:
    """``kernel_shap`` as ``Kernel shap``."""
    return name.replace("_", " ").capitalize()


def _summary(metrics: Sequence[Metric], attack: str | None) -> str:
    gains = {m.name.removesuffix("_deletion_gain"): m for m in metrics if m.name.endswith("_deletion_gain")}
    best = max(gains, key=lambda name: gains[name].value or 0)
    one = gains[best]
    after = by_name(metrics)[f"{best}_top_overlap_attacked"]
    moved = ""
    if after.value is not None:
        size = (
            f"{after.n} texts"
            if after.ci_low is None
            else f"{after.ci_low:.2f} to {after.ci_high:.2f}, {after.n} texts"
        )
        moved = (
            f" Of its most relevant words {after.value:.2f} are the same once {attack} edits fool the model ({size})."
        )
    return (
        f"{spoken(best)} ranks words best: removing them in its order takes {one.value:.3f} more area from the "
        f"confidence than random order does (95 % interval {one.ci_low:.3f} to {one.ci_high:.3f}, {one.n} texts)."
        + moved
    )


def _findings(metrics: Sequence[Metric], methods: Sequence[str]) -> Iterator[Finding]:
    for method in methods:
        yield from elsewhere(method, spoken(method), by_name(metrics))
    for metric in metrics:
        name = metric.name.removesuffix("_deletion_gain")
        if name != metric.name and metric.ci_low is not None and metric.ci_low <= 0:
            yield Finding(
                severity="medium",
                title=f"{spoken(name)} ranks words no better than chance",
                detail=f"Deletion gain {metric.value:.3f}, 95 % interval from {metric.ci_low:.3f}.",
                remedy="Do not show its explanations to users of this model.",
                standards=STANDARDS,
            )


def _figures(
    texts: Texts,
    base: Tensor,
    found: Mapping[str, Explained],
    fallen: Attacked,
    metrics: Sequence[Metric],
    most: int,
) -> Iterator[Figure]:
    x = tuple(part / _PARTS for part in range(_PARTS + 1))
    for place, kind in enumerate(("deletion", "insertion")):
        yield Chart(
            id=kind,
            title=f"{kind.capitalize()} of words",
            caption="Mean probability of the predicted class as the most relevant words "
            + ("go: early falls speak for a method." if place == 0 else "come: early rises speak for a method."),
            x_label="share of words",
            y_label="probability",
            y_range=(0, 1),
            lines=tuple(
                Line(name=spoken(name), x=x, y=tuple(one.curves[:, place].mean(0).tolist()), dashed=name == CONTROL)
                for name, one in found.items()
            ),
        )
    yield _table(texts, found, fallen, metrics)
    shown = next(name for name in found if name != CONTROL)
    one, caption = found[shown], "Blue words speak for the predicted class, orange ones against it."
    items = [_excerpt(texts, base, one, row) for row in range(min(most, len(texts)))]
    if items:
        title = f"What decides, by {spoken(shown)}"
        yield Excerpts(id="texts", title=title, caption=caption, style="relevance", items=tuple(items))
    pairs = [excerpt(texts, row, base, fallen, one.words, one.after, at) for at, row in enumerate(fallen.rows[:most])]
    if pairs:
        title = f"Before and after the attack, by {spoken(shown)}"
        caption = "Blue words speak for the class that the model named before the attack, orange ones against it."
        yield Excerpts(id="attacked_texts", title=title, caption=caption, style="relevance", items=tuple(pairs))


def _table(texts: Texts, found: Mapping[str, Explained], fallen: Attacked, metrics: Sequence[Metric]) -> Table:
    named = by_name(metrics)
    lengths = [len(Passage.of(texts.text(row))) for row in fallen.rows]
    chance = float(np.mean([top_count(n) / max(n, 1) for n in lengths])) if lengths else None
    return Table(
        id="moves",
        title="Which explanations stay when a text is edited",
        caption="Share of the most relevant fifth of the words that is the same after slips of the finger that change "
        f"no prediction, and in {len(lengths)} adversarial versions; rank correlation of all words in these. "
        "By chance: what unrelated rankings share.",
        columns=("method", "after slips", "after the attack", "low", "high", "by chance", "rank correlation, attacked"),
        rows=tuple(
            (
                spoken(name),
                named[f"{name}_top_overlap_edited"].value,
                named[f"{name}_top_overlap_attacked"].value,
                named[f"{name}_top_overlap_attacked"].ci_low,
                named[f"{name}_top_overlap_attacked"].ci_high,
                chance,
                named[f"{name}_rank_correlation_attacked"].value,
            )
            for name in found
            if name != CONTROL
        ),
    )


def _excerpt(texts: Texts, base: Tensor, one: Explained, row: int) -> Excerpt:
    label = f"model: {verdict(base[row], texts.target.classes)}"
    text = coloured(label, Passage.of(texts.text(row)), one.words[row])
    return Excerpt(sample_id=str(texts.samples.names[row]), texts=(text,))


def _tensors(texts: Texts, base: Tensor, found: Mapping[str, Explained], fallen: Attacked) -> dict[str, Tensor]:
    edits = pack_edits(fallen.edits, fallen.rows)
    tensors = {"ids": torch.from_numpy(texts.samples.ids), "base_logits": base, "adv_logits": fallen.logits, **edits}
    for name, one in found.items():
        for kind, words in (("words", one.words), ("slips", one.slips), ("attacked", one.after)):
            tensors[f"{name}_{kind}"] = torch.from_numpy(np.concatenate([*words, np.zeros(0)]))
        tensors[f"{name}_curves"] = torch.from_numpy(one.curves)
    return tensors


def _recorded(name: str, texts: Texts, tensors: Mapping[str, Tensor], fallen: Attacked) -> Explained:
    """Inverse of :func:`_tensors` for one method."""
    lengths = [len(Passage.of(texts.text(row))) for row in range(len(texts))]
    words, slips = (_split(tensors[f"{name}_{kind}"], lengths) for kind in ("words", "slips"))
    after = _split(tensors[f"{name}_attacked"], [lengths[row] for row in fallen.rows])
    return Explained(words, tensors[f"{name}_curves"].numpy(), slips, after)


def _split(values: Tensor, lengths: Sequence[int]) -> Words:
    return [part.numpy() for part in values.split(list(lengths))]
