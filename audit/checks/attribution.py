"""Why the model decides as it does, and how far its explanations can be believed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ...attacks.attack import Attack
from ...attacks.streams import Streams
from ...attacks.threat import Norm, Threat, parse_eps
from ...reports.record import Evidence, Figure, Metric, Result
from .. import registry
from ..attribution.baselines import BaselineName, make_baseline
from ..attribution.counting import counted
from ..attribution.evidence import (
    map_tensors,
    score_tensors,
    verified_curves,
    verified_inputs,
    verified_maps,
    verified_metrics,
)
from ..attribution.examine import Examined, Settings, examine, examine_control, grid_of
from ..attribution.figures import Row, figures
from ..attribution.findings import STANDARDS, findings, summary
from ..attribution.layers import grad_cam_layer
from ..attribution.methods import Method
from ..attribution.metrics import border_mask, logit_change
from ..attribution.scene import Scene, make_scene
from ..attribution.scores import descriptions, metrics_of
from ..errors import UnsupportedError
from ..samples import Samples
from ..target import Access, Modality, Target
from .base import Check, Claim, Context, encoded
from .outputs import all_logits

Pairs = Mapping[Method, tuple[Examined, Examined]]


class Attribution(Check):
    """Attribution maps with the scores that say whether to believe them, each beside a random control."""

    name: ClassVar[str] = "attribution"
    title: ClassVar[str] = "Explanations"
    question: ClassVar[str] = "Which pixels decide, can the explanation be believed, and does it survive an attack?"
    requires: ClassVar[frozenset[Access]] = frozenset({"gradients"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image"})
    references: ClassVar[tuple[str, ...]] = (
        "Sundararajan et al., Axiomatic Attribution for Deep Networks, arXiv 1703.01365",
        "Simonyan et al., Deep Inside Convolutional Networks, arXiv 1312.6034",
        "Selvaraju et al., Grad-CAM, arXiv 1610.02391",
        "Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, arXiv 1311.2901",
        "Petsiuk et al., RISE (deletion and insertion), arXiv 1806.07421",
        "Yeh et al., On the (In)fidelity and Sensitivity of Explanations, arXiv 1901.09392",
        "Adebayo et al., Sanity Checks for Saliency Maps, arXiv 1810.03292",
        "Ghorbani et al., Interpretation of Neural Networks is Fragile, arXiv 1710.10547",
        "Kokhlikyan et al., Captum, arXiv 2009.07896",
    )
    standards: ClassVar[tuple[str, ...]] = STANDARDS
    metrics: ClassVar[Mapping[str, str]] = descriptions()
    cost: ClassVar[str] = "a few hundred forward and backward passes per sample and method; 32 samples by default"

    method: Method | None = Field(default=None, description="One method; instead of `methods`.")
    methods: tuple[Method, ...] = Field(
        default=("integrated_gradients", "saliency", "grad_cam", "occlusion"),
        min_length=1,
        description="Methods to compare. Grad-CAM is left out, with a warning, where it was not asked for by name "
        "and the model has no convolution.",
    )
    samples: int = Field(default=32, ge=2, description="How many samples to explain, drawn at random under the seed.")
    steps: int = Field(default=32, ge=2, description="Points on the path of Integrated Gradients and GradientShap.")
    baseline: BaselineName = Field(default="zero", description="What stands for 'nothing': zero, mean, or blur.")
    layer: str | None = Field(default=None, description="Grad-CAM's layer; the last convolution when left out.")
    attack: str = Field(default="pgd", description="The attack before and after which explanations are compared.")
    attack_steps: int = Field(default=20, ge=1, description="Steps of the attack, where it has any.")
    norm: Norm = Field(default="linf", description="Norm of the attack.")
    eps: float | str = Field(default="8/255", description="Radius of the attack in input units, e.g. 8/255.")
    top: float = Field(default=0.1, gt=0, lt=1, description="Share of pixels that count as the most relevant.")
    gallery: int = Field(default=4, ge=0, description="How many samples to show.")

    @field_validator("eps")
    @classmethod
    def _eps_is_a_number(cls, eps: float | str) -> float | str:
        parse_eps(eps)
        return eps

    @field_validator("attack")
    @classmethod
    def _attack_exists(cls, attack: str) -> str:
        known = registry.names("attacks")
        if attack not in known:
            raise ValueError(registry.unknown("attack", attack, known))
        return attack

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if self.method is not None and "methods" in self.model_fields_set:
            raise ValueError("give method or methods, not both")
        return self

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        chosen = samples.select(drawn(samples.ids, self.samples, context.seed))
        rows = _rows(target, chosen, context)
        while True:
            try:
                return self._run(target, chosen, context, rows)
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise
                rows //= 2

    def _run(self, target: Target, chosen: Samples, context: Context, rows: int) -> Result:
        settings = self._settings(target, context.seed, rows)
        with counted(target.module) as count:
            all_logits(target, chosen, rows)  # refuses a model that gives NaN, naming the samples
            scene = self._scene(target, chosen, settings)
            methods, warnings = self._fitting(scene)
            context.progress.start(self.title, 2 * len(methods))
            examined = _examine(scene, methods, settings, context)
            change = _mean_logit_change(scene, settings)
        metrics = tuple(
            metric
            for method, (own, control) in examined.items()
            for metric in metrics_of(method, own.scores, control.scores, context.seed)
        )
        by_name = {metric.name: metric for metric in metrics}
        shown = self._shown(scene)
        maps = context.evidence("attributions", map_tensors(scene, examined, shown), "maps")
        scores = context.evidence("scores", score_tensors(scene, examined), "scores")
        frame = float(border_mask(scene.x["clean"][:, 0]).float().mean())
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=summary(methods, by_name, f"{self.attack}, {self.norm} {self.eps}"),
            status="ok",
            parameters=self._parameters(scene, methods),
            metrics=metrics,
            findings=tuple(findings(methods, by_name, frame, change)),
            figures=self._figures(target, chosen, scene, examined, by_name, shown, maps, context.seed),
            evidence=(maps, scores),
            warnings=(*warnings, *_undefined(metrics)),
            not_covered=self._not_covered(),
            references=self.references,
            standards=self.standards,
            forwards=count.forwards,
            backwards=count.backwards,
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        maps, scores = (context.read_evidence(evidence) for evidence in result.evidence)
        methods: tuple[Method, ...] = tuple(result.parameters["methods"])
        place = {int(number): i for i, number in enumerate(samples.ids)}
        known = all(int(number) in place for number in [*maps["ids"], *scores["ids"]])
        yield Claim("the explained samples are among the audited ones", known, f"{len(scores['ids'])} samples")
        if not known:
            return
        stored = samples.select(np.array([place[int(number)] for number in maps["ids"]], dtype=np.int64))
        settings = self._settings(target, context.seed, _rows(target, samples, context))
        x = encoded(target, stored)[0].to(target.device) if len(stored) else maps["x"]
        for verified in verified_inputs(target.module, x, maps, self._threat(target), settings.rows):
            yield Claim(*verified)
        for method in methods:
            yield Claim(*verified_maps(target.module, maps, method, settings, target.device))
            yield Claim(*verified_curves(target.module, maps, scores, method, settings, target.device))
        for verified in verified_metrics(result.metrics, scores, methods, context.seed):
            yield Claim(*verified)

    def _threat(self, target: Target) -> Threat:
        return Threat(self.norm, parse_eps(self.eps), bounds=target.bounds)

    def _settings(self, target: Target, seed: int, rows: int) -> Settings:
        return Settings(
            baseline=self.baseline,
            bounds=target.bounds,
            steps=self.steps,
            layer=self.layer,
            top=self.top,
            seed=seed,
            rows=rows,
        )

    def _scene(self, target: Target, chosen: Samples, settings: Settings) -> Scene:
        x = encoded(target, chosen)[0].to(target.device)
        if x.dim() != 4:
            raise UnsupportedError(f"attribution explains images (n, c, h, w), not inputs {tuple(x.shape)}")
        ids = torch.from_numpy(chosen.ids).to(target.device)
        attack = attack_of(self.attack, self.attack_steps)
        return make_scene(target.module, x, ids, attack, self._threat(target), settings.seed, settings.rows)

    def _fitting(self, scene: Scene) -> tuple[tuple[Method, ...], tuple[str, ...]]:
        """The methods to examine, and a warning when a default does not fit the model."""
        if self.method is not None:
            return (self.method,), ()
        chosen = tuple(dict.fromkeys(self.methods))
        if "methods" in self.model_fields_set or "grad_cam" not in chosen:
            return chosen, ()
        try:
            grad_cam_layer(scene.module, scene.x["clean"], self.layer)
        except UnsupportedError as error:
            return tuple(m for m in chosen if m != "grad_cam"), (f"Grad-CAM left out: {error}",)
        return chosen, ()

    def _shown(self, scene: Scene) -> list[int]:
        """Positions of the gallery's samples: those whose prediction the attack changed first."""
        kept = (scene.classes["clean"] == scene.classes["attacked"]).long().cpu()
        return kept.argsort(stable=True)[: self.gallery].tolist()

    def _parameters(self, scene: Scene, methods: Sequence[Method]) -> dict[str, object]:
        parameters = self.model_dump(exclude={"id", "variants", "method"})
        parameters |= {"methods": list(methods), "eps": parse_eps(self.eps)}
        if "grad_cam" in methods:
            parameters["layer"] = grad_cam_layer(scene.module, scene.x["clean"], self.layer)
        return parameters

    def _figures(
        self,
        target: Target,
        chosen: Samples,
        scene: Scene,
        examined: Pairs,
        metrics: Mapping[str, Metric],
        shown: Sequence[int],
        maps: Evidence,
        seed: int,
    ) -> tuple[Figure, ...]:
        rows = [_row(target, chosen, scene, i) for i in shown]
        return tuple(figures(examined, metrics, rows, shown, maps, self.baseline, seed))

    def _not_covered(self) -> tuple[str, ...]:
        return (
            "Attribution is not proof of cause: a map shows where the model is sensitive, not why, and not what it "
            "would do on other data.",
            f"Scores depend on the {self.baseline} baseline and on inputs with pixels removed, which the model never "
            "saw in training.",
            "Attacks on the explanation itself, which change the map and keep the prediction.",
            "Shortcuts inside the object or spread over the whole image.",
        )


def drawn(ids: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Positions of ``count`` samples drawn at random; which ones depends on seed and ids, not on the order."""
    lots = Streams.from_seed(seed, torch.from_numpy(ids)).fork(3).uniform((1,))[:, 0].numpy()
    return np.sort(np.argsort(lots, kind="stable")[:count])


def attack_of(name: str, steps: int) -> Attack:
    """The registered attack with so many steps, where it has a field of that name."""
    kind = registry.load("attacks", name)
    return kind(steps=steps) if "steps" in {field.name for field in fields(kind)} else kind()


def _rows(target: Target, samples: Samples, context: Context) -> int:
    """Rows per pass: two million numbers on a CPU, sixteen times as many on a GPU, at most 256."""
    if context.batch_size is not None:
        return context.batch_size
    numbers = encoded(target, samples.select(np.arange(min(1, len(samples)))))[0].numel()
    return max(16, min(256, (2**25 if target.device.type == "cuda" else 2**21) // max(numbers, 1)))


def _undefined(metrics: Sequence[Metric]) -> tuple[str, ...]:
    if any(metric.value is None and "attacked" in metric.name for metric in metrics):
        return ("The attack changed no input (no gradient?): scores of attacked explanations are undefined.",)
    return ()


def _examine(scene: Scene, methods: Sequence[Method], settings: Settings, context: Context) -> Pairs:
    """Each method beside its control; methods of the same resolution share one."""
    controls: dict[tuple[int, int], Examined] = {}
    examined: dict[Method, tuple[Examined, Examined]] = {}
    for method in methods:
        own = examine(scene, method, settings)
        context.progress.advance()
        grid = grid_of(scene, method, settings)
        if grid not in controls:
            controls[grid] = examine_control(scene, grid, settings)
        context.progress.advance()
        examined[method] = own, controls[grid]
    return examined


def _mean_logit_change(scene: Scene, settings: Settings) -> float:
    x: Tensor = scene.x["clean"]
    nothing = make_baseline(x, settings.baseline, settings.bounds)
    change = logit_change(scene.module, x, scene.classes["clean"], nothing, batch_size=settings.rows)
    return float(change.abs().mean())


def _row(target: Target, chosen: Samples, scene: Scene, i: int) -> Row:
    return Row(
        sample_id=str(chosen.names[i]),
        label=target.classes[int(chosen.labels[i])],
        predicted=target.classes[int(scene.classes["clean"][i])],
        confidence=float(scene.confidence["clean"][i]),
        attacked=target.classes[int(scene.classes["attacked"][i])],
        attacked_confidence=float(scene.confidence["attacked"][i]),
    )
