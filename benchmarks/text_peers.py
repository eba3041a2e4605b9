"""TextAttack on the same model, texts, stopwords, synonyms and budget; parts of it that are not used are left out."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import logging
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from auditorch.attacks.text.constraints.stopwords import STOPWORDS
from auditorch.attacks.text.resources.wordnet import WordNet
from auditorch.audit.loading.tokens import HuggingFaceClassifier
from text_subjects import Subject

UNUSED = [
    "boto3",
    "flair",
    "datasets",
    "language_tool_python",
    "bert_score",
    "sentence_transformers",
    "lemminflect",
    "OpenHowNet",
    "pinyin",
    "jieba",
    "num2words",
    "word2number",
    "pandas",
    "terminaltables",
    "anytree",
    "tensorflow",
    "tensorflow_hub",
    "visdom",
    "wandb",
    "peft",
    "langdetect",
]
"""What TextAttack imports for recipes, augmenters and reports that are not compared here."""


class _Hollow(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Hollow(name, (), {})


class _HollowModule(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - as the import system wants it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Hollow(name, (), {})


class _Stand(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        del path, target
        known = name.partition(".")[0] in self.names
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _HollowModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        del module


def load_textattack(folder: Path) -> Any:
    """Imports TextAttack from ``folder``; packages that it does not need here have stand-ins."""
    sys.path.append(str(folder))
    sys.meta_path.insert(0, _Stand(set(UNUSED)))
    data = Path(tempfile.mkdtemp()) / "corpora" / "stopwords"
    data.mkdir(parents=True)
    (data / "english").write_text(
        "\n".join(sorted({form for word in STOPWORDS for form in (word, word.capitalize(), word.upper())}))
    )
    import nltk

    nltk.data.path.insert(0, str(data.parent.parent))
    import textattack

    textattack.shared.logger.setLevel(logging.ERROR)
    return textattack


@dataclass(frozen=True)
class PeerResult:
    """One text: whether it was attacked, whether that succeeded, and queries."""

    tried: bool
    success: bool
    queries: int


def attacked(
    recipe: str,
    wrapper: Any,
    texts: Sequence[str],
    labels: Sequence[int],
    budget: int,
    seed: int,
    known: WordNet | None,
) -> list[PeerResult]:
    """TextAttack's recipe on each text; for ``pwws`` it gets our reader of WordNet, so that synonyms are the same."""
    from textattack.attack_recipes import DeepWordBugGao2018, PWWSRen2019
    from textattack.attack_results import SkippedAttackResult, SuccessfulAttackResult
    from textattack.transformations import WordSwapWordNet

    np.random.seed(seed)
    torch.manual_seed(seed)
    if known is not None:
        WordSwapWordNet.__init__ = lambda self, **_: super(WordSwapWordNet, self).__init__()
        WordSwapWordNet._get_replacement_words = lambda _, word, **__: list(known.synonyms(word)[:50])
    attack = (PWWSRen2019 if recipe == "pwws" else DeepWordBugGao2018).build(wrapper)
    attack.goal_function.query_budget = budget
    results = []
    for text, label in zip(texts, labels, strict=True):
        result = attack.attack(text, int(label))
        tried = not isinstance(result, SkippedAttackResult)
        results.append(PeerResult(tried, isinstance(result, SuccessfulAttackResult), int(result.num_queries)))
    return results


def plain_wrapper(logits: Callable[[Sequence[str]], Any]) -> Any:
    """A wrapper that batches as we do: padded to the longest text of the batch."""
    from textattack.models.wrappers import ModelWrapper

    class Plain(ModelWrapper):
        model = torch.nn.Identity()

        def __call__(self, texts: Sequence[str], **_: Any) -> Any:
            return logits(list(texts))

    return Plain()


def published_wrapper(subject: Subject) -> Any:
    """TextAttack's own wrapper, with the padding that it comes with.

    Its wrapper of ``transformers`` models pads every text to the model's full length (512); the tokenizer of its own
    CNN and LSTM pads to 128.
    """
    from textattack.models.wrappers import HuggingFaceModelWrapper, PyTorchModelWrapper

    if isinstance(subject.module, HuggingFaceClassifier):
        return HuggingFaceModelWrapper(subject.module.body, subject.tokenizer)
    tokenizer: Any = subject.tokenizer

    def fixed(texts: Sequence[str]) -> list[list[int]]:
        rows = [tokenizer.ids(text) for text in texts]
        return [row + [0] * (128 - len(row)) for row in rows]

    return PyTorchModelWrapper(subject.module, fixed)
