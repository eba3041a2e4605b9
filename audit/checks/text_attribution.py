"""Which words decide, whether that can be believed, and whether it survives small edits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from captum.attr import KernelShap, LayerGradientXActivation, LayerIntegratedGradients
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from ...attacks.models import attacking
from ...attacks.statistics import bootstrap_sums, percentile_interval
from ...attacks.text.gradients import slot_of_tokens, token_embedding
from ...attacks.text.noise import corrupted
from ...attacks.text.passage import Passage
from ...attacks.text.victim import scores
from ...reports.record import Chart, Excerpt, Excerpts, Figure, Finding, Line, Mark, MarkedText, Metric, Result
from ..attribution.findings import STANDARDS
from ..errors import UnsupportedError
from ..loading.tokens import HuggingFaceEncode, TokenEncode
from ..samples import Samples
from ..target import Access, Modality, Target
from .base import Check, Claim, Context
from .images import verdict
from .metrics import estimate
from .outputs import same_predictions
from .text_inputs import Texts

Method = Literal["integrated_gradients", "input_x_gradient", "occlusion", "kernel_shap"]
METHODS: tuple[Method, ...] = get_args(Method)
_WHITE_BOX = ("integrated_gradients", "input_x_gradient")
_PARTS = 8
"""Steps of the deletion and insertion curves."""


@dataclass(frozen=True, slots=True)
class Explained:
    """One method on n texts.

    Attributes:
        words: relevance of each word for the predicted class, one array a text.
        curves: ``(n, 2, parts + 1)``, probability of that class as words go (deletion) and come (insertion).
        overlap: ``(n,)``, share of the most relevant fifth of the words that is the same after slips of the finger.
    """

    words: list[NDArray[np.float64]]
    curves: NDArray[np.float64]
    overlap: NDArray[np.float64]

    @property
    def areas(self) -> NDArray[np.float64]:
        """Areas ``(n, 2)`` under both curves."""
        return np.asarray(np.trapezoid(self.curves, dx=1 / _PARTS, axis=2))


class TextAttribution(Check):
    """Relevance of words by Captum's methods, tokens joined to words, each beside a random control.

    A believable ranking makes the probability fall early when its first words go, and rise early when they come.
    """

    name: ClassVar[str] = "text_attribution"
    title: ClassVar[str] = "Explanations of texts"
    question: ClassVar[str] = "Why does it decide so?"
    requires: ClassVar[frozenset[Access]] = frozenset({"scores"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    references: ClassVar[tuple[str, ...]] = (
        "Sundararajan et al., Axiomatic Attribution for Deep Networks, arXiv 1703.01365",
        "Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, arXiv 1705.07874",
        "Li et al., Understanding Neural Networks through Representation Erasure, arXiv 1612.08220",
        "Petsiuk et al., RISE (deletion and insertion), arXiv 1806.07421",
        "Kokhlikyan et al., Captum, arXiv 2009.07896",
    )
    standards: ClassVar[tuple[str, ...]] = STANDARDS
    metrics: ClassVar[Mapping[str, str]] = {
        "METHOD_deletion_gain": "By how much less area lies under the deletion curve than for random order.",
        "METHOD_insertion_gain": "By how much more area lies under the insertion curve than for random order.",
        "METHOD_top_overlap_edited": "Share of the most relevant fifth of the words that is still among them after "
        "slips of the finger that change no prediction.",
    }
    cost: ClassVar[str] = "some two hundred passes per text and method"

    methods: tuple[Method, ...] = Field(default=METHODS, min_length=1, description="Methods to compare.")
    samples: int = Field(default=16, ge=2, description="How many texts to explain, evenly spaced.")
    steps: int = Field(default=32, ge=2, description="Points of Integrated Gradients, draws per word of KernelShap.")
    column: Literal["first", "second"] = Field(default="second", description="Which text of a pair is explained.")
    gallery: int = Field(default=6, ge=0, description="How many texts to show.")

    @field_validator("methods")
    @classmethod
    def _once(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        return tuple(dict.fromkeys(methods))

    def required(self) -> frozenset[Access]:
        return frozenset({"gradients" if set(self.methods) & set(_WHITE_BOX) else "scores"})

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        texts = Texts.of(target, samples, self.samples, int(self.column == "second"))
        context.progress.start(self.title, 2 * len(self.methods) + 1)
        with attacking(target.module):
            base = texts.logits(texts.raws)
            texts.require_finite(base)
            classes = base.argmax(1)
            edited = self._edited(texts, classes, context)
            found = {name: self._explained(name, texts, classes, edited, context) for name in ("random", *self.methods)}
        metrics = tuple(_metrics(found))
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=_summary(metrics),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}),
            metrics=metrics,
            findings=tuple(_findings(metrics)),
            figures=tuple(_figures(texts, base, found, self.gallery)),
            evidence=(context.evidence("attributions", _tensors(texts, base, found)),),
            not_covered=("Whether a person finds the explanation plausible; interactions of words.",),
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
            found = {}
            for name in ("random", *self.methods):
                words = _split(recorded[f"{name}_words"], [len(Passage.of(texts.text(i))) for i in range(len(texts))])
                curves = self._curves(texts, recorded["base_logits"].argmax(1), words, context)
                kept = recorded[f"{name}_curves"].numpy()
                yield Claim(
                    f"the curves of {name} follow from its relevances", bool(np.abs(curves - kept).max() < 1e-3)
                )
                found[name] = Explained(words, kept, recorded[f"{name}_overlap"].numpy())
        again = {metric.name: metric for metric in _metrics(found)}
        for metric in result.metrics:
            other = again.get(metric.name)
            ok = other is not None and abs((other.value or 0) - (metric.value or 0)) < 1e-9
            yield Claim(f"{metric.name} follows from the evidence", ok)

    def _explained(
        self, name: str, texts: Texts, classes: Tensor, edited: Sequence[Passage], context: Context
    ) -> Explained:
        originals = [Passage.of(texts.text(row)) for row in range(len(texts))]
        words = self._relevance(name, texts, originals, classes, context)
        changed = self._relevance(name, texts, edited, classes, context)
        overlap = np.array([top_overlap(own, other) for own, other in zip(words, changed, strict=True)])
        context.progress.advance()
        return Explained(words, self._curves(texts, classes, words, context), overlap)

    def _relevance(
        self, name: str, texts: Texts, passages: Sequence[Passage], classes: Tensor, context: Context
    ) -> list[NDArray[np.float64]]:
        """Relevance of each word of each passage for the class given."""
        if name in _WHITE_BOX:
            return _by_gradient(name, texts, passages, classes, self.steps)
        found = []
        for row, passage in enumerate(passages):
            if name == "random":
                rng = np.random.default_rng([context.seed, int(texts.samples.ids[row])])
                found.append(rng.random(len(passage)))
            else:
                found.append(self._by_masks(name, texts, row, passage, int(classes[row]), context))
        return found

    def _by_masks(
        self, name: str, texts: Texts, row: int, passage: Passage, c: int, context: Context
    ) -> NDArray[np.float64]:
        """Relevance from versions of the text without some of its words."""
        n = len(passage)
        if n == 0:
            return np.zeros(0)

        def margin(masks: Tensor) -> Tensor:
            versions = [_without(passage, mask) for mask in masks.bool().tolist()]
            return _margins(texts, [row] * len(versions), versions, torch.full((len(versions),), c))

        whole = torch.ones(1, n)
        if name == "occlusion":
            return (margin(whole) - margin(1 - torch.eye(n))).double().numpy()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((context.seed + int(texts.samples.ids[row])) % 2**31)
            shap = KernelShap(margin)
            values = shap.attribute(
                whole, baselines=torch.zeros(1, n), n_samples=max(2 * n, self.steps), perturbations_per_eval=64
            )
        return values[0].double().numpy()

    def _curves(
        self, texts: Texts, classes: Tensor, words: Sequence[NDArray[np.float64]], context: Context
    ) -> NDArray[np.float64]:
        """Probability of the class ``(n, 2, parts + 1)`` as the most relevant words go, and as they come."""
        del context
        rows, versions = [], []
        for row, relevance in enumerate(words):
            passage = Passage.of(texts.text(row))
            rank = np.empty(len(relevance), dtype=np.int64)
            rank[np.argsort(-relevance, kind="stable")] = np.arange(len(relevance))
            for part in range(_PARTS + 1):
                gone = rank < round(part * len(relevance) / _PARTS)
                versions += [_without(passage, list(~gone)), _without(passage, list(gone))]
                rows += [row, row]
        logits = texts.logits([texts.with_text(row, text) for row, text in zip(rows, versions, strict=True)])
        of_class = logits.double().softmax(1).gather(1, classes[torch.tensor(rows)][:, None])[:, 0]
        return of_class.view(len(words), _PARTS + 1, 2).transpose(1, 2).numpy().copy()

    def _edited(self, texts: Texts, classes: Tensor, context: Context) -> list[Passage]:
        """Each text with slips in a tenth of its words, the first of eight such versions that changes no prediction."""
        chosen = [Passage.of(texts.text(row)) for row in range(len(texts))]
        waiting = list(range(len(texts)))
        for attempt in range(8):
            if not waiting:
                break
            keys = [f"{context.seed}:{int(texts.samples.ids[row])}:{attempt}" for row in waiting]
            versions = [corrupted(texts.text(row), "typos", 1, key) for row, key in zip(waiting, keys, strict=True)]
            said = texts.logits([texts.with_text(row, text) for row, text in zip(waiting, versions, strict=True)])
            left = []
            for row, text, c in zip(waiting, versions, said.argmax(1).tolist(), strict=True):
                passage = Passage.of(text)
                if c == int(classes[row]) and len(passage) == len(chosen[row]):
                    chosen[row] = passage
                else:
                    left.append(row)
            waiting = left
        return chosen


def top_overlap(own: NDArray[np.float64], other: NDArray[np.float64], share: float = 0.2) -> float:
    """Share of the most relevant words (a fifth, one at least) of one ranking that are among those of the other."""
    k = max(1, round(share * len(own)))
    first, second = (set(np.argsort(-values, kind="stable")[:k].tolist()) for values in (own, other))
    return len(first & second) / k


def _without(passage: Passage, kept: Sequence[bool]) -> str:
    """The text without the words not kept, blanks folded."""
    words = tuple(word if keep else "" for word, keep in zip(passage.words, kept, strict=True))
    return " ".join(Passage(words, passage.gaps).text.split()) if not all(kept) else passage.text


def _margins(texts: Texts, rows: Sequence[int], versions: Sequence[str], classes: Tensor) -> Tensor:
    """Log odds ``(m,)`` of a class for versions of texts."""
    logits = texts.logits([texts.with_text(row, text) for row, text in zip(rows, versions, strict=True)])
    return scores(logits, classes, targeted=True).float()


def _by_gradient(
    name: str, texts: Texts, passages: Sequence[Passage], classes: Tensor, steps: int
) -> list[NDArray[np.float64]]:
    """Captum's layer methods on the token embedding, one text at a time, tokens joined to words.

    Raises:
        UnsupportedError: when the tokenizer does not say where its tokens lie.
    """
    target = texts.target
    encode, layer = target.encode, token_embedding(target.module)
    if not isinstance(encode, HuggingFaceEncode | TokenEncode):
        raise UnsupportedError(f"{name} needs a tokenizer; explain this model by occlusion or kernel_shap")

    def margin(x: Tensor, c: Tensor) -> Tensor:
        logits = target.module(x).float()
        own = logits.gather(1, c[:, None])[:, 0]
        return own - logits.scatter(1, c[:, None], float("-inf")).logsumexp(1)

    found = []
    for row, passage in enumerate(passages):
        raw = texts.with_text(row, passage.text)
        spans = encode.offsets([raw], texts.column)
        if spans is None:
            raise UnsupportedError(f"{name} needs a tokenizer with offsets; explain this model by occlusion")
        x, c = encode([raw]).to(target.device), classes[row : row + 1].to(target.device)
        with torch.enable_grad():
            if name == "integrated_gradients":
                explained = LayerIntegratedGradients(lambda ids, c=c: margin(ids, c.expand(len(ids))), layer)
                # The baseline are padding ids: embeddings of nothing, at the places of the tokens.
                relevance = explained.attribute(x, baselines=_blank(x), n_steps=steps, internal_batch_size=64)
            else:
                relevance = LayerGradientXActivation(lambda ids, c=c: margin(ids, c), layer).attribute(x)
        assert isinstance(relevance, Tensor)
        tokens = relevance[0].sum(-1).detach().double().cpu().numpy()
        values = np.zeros(len(passage))
        for value, slot in zip(tokens.tolist(), slot_of_tokens(passage, spans[0]), strict=False):  # padding has no span
            if slot >= 0:
                values[slot] += value
        found.append(values)
    return found


def _blank(x: Tensor) -> Tensor:
    """The same encoding with zeros for token ids; mask and types stay."""
    blank = x.clone()
    (blank[:, 0] if x.dim() == 3 else blank).zero_()
    return blank


def _metrics(found: Mapping[str, Explained]) -> Iterator[Metric]:
    control = found["random"].areas
    for name, one in found.items():
        if name == "random":
            continue
        gains = (control[:, 0] - one.areas[:, 0], one.areas[:, 1] - control[:, 1])
        for kind, values in zip(("deletion", "insertion"), gains, strict=True):
            yield _mean(f"{name}_{kind}_gain", values, f"{spoken(name)}: {kind} gain over random order")
        yield _mean(f"{name}_top_overlap_edited", one.overlap, f"{spoken(name)}: top words that stay after slips")


def _mean(name: str, values: NDArray[np.float64], label: str) -> Metric:
    interval = percentile_interval(bootstrap_sums(values[:, None])[:, 0] / len(values))
    value = float(values.mean())
    return estimate(name, value, interval, len(values), label=label, higher_is_better=True, method="bootstrap")


def spoken(name: str) -> str:
    """``kernel_shap`` as ``Kernel shap``."""
    return name.replace("_", " ").capitalize()


def _summary(metrics: Sequence[Metric]) -> str:
    gains = {m.name.removesuffix("_deletion_gain"): m for m in metrics if m.name.endswith("_deletion_gain")}
    best = max(gains, key=lambda name: gains[name].value or 0)
    one = gains[best]
    return (
        f"{spoken(best)} ranks words best: removing them in its order takes {one.value:.3f} more area from the "
        f"confidence than random order does (95 % interval {one.ci_low:.3f} to {one.ci_high:.3f}, {one.n} texts)."
    )


def _findings(metrics: Sequence[Metric]) -> Iterator[Finding]:
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


def _figures(texts: Texts, base: Tensor, found: Mapping[str, Explained], most: int) -> Iterator[Figure]:
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
                Line(name=spoken(name), x=x, y=tuple(one.curves[:, place].mean(0).tolist()), dashed=name == "random")
                for name, one in found.items()
            ),
        )
    shown = next(name for name in found if name != "random")
    items = [_excerpt(texts, base, found[shown], row) for row in range(min(most, len(texts)))]
    if items:
        title = f"What decides, by {spoken(shown)}"
        caption = "Blue words speak for the predicted class, orange ones against it."
        yield Excerpts(id="texts", title=title, caption=caption, style="relevance", items=tuple(items))


def _excerpt(texts: Texts, base: Tensor, one: Explained, row: int) -> Excerpt:
    passage, relevance = Passage.of(texts.text(row)[:20_000]), one.words[row]
    largest = float(np.abs(relevance).max(initial=1e-12))
    marks = [
        Mark(start=start, end=end, weight=max(-1.0, min(1.0, float(value) / largest)))
        for (start, end), value in zip(passage.spans(), relevance, strict=False)
    ]
    text = MarkedText(label=f"model: {verdict(base[row], texts.target.classes)}", text=passage.text, marks=tuple(marks))
    return Excerpt(sample_id=str(texts.samples.names[row]), texts=(text,))


def _tensors(texts: Texts, base: Tensor, found: Mapping[str, Explained]) -> dict[str, Tensor]:
    tensors = {"ids": torch.from_numpy(texts.samples.ids), "base_logits": base}
    for name, one in found.items():
        tensors[f"{name}_words"] = torch.from_numpy(np.concatenate([*one.words, np.zeros(0)]))
        tensors[f"{name}_curves"] = torch.from_numpy(one.curves)
        tensors[f"{name}_overlap"] = torch.from_numpy(one.overlap)
    return tensors


def _split(values: Tensor, lengths: Sequence[int]) -> list[NDArray[np.float64]]:
    return [part.numpy() for part in values.split(list(lengths))]
