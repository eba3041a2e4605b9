"""A toy world of texts with known answers: word scores add up to a logit, and a tiny transformer on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from auditorch.attacks.text.victim import Raw
from torch import Tensor

SCORES = {"good": 2.0, "great": 3.0, "fine": 1.0, "bad": -2.0, "awful": -3.0, "poor": -1.0}
TEXTS = (
    "this film is good",
    "A great and fine story, told well!",
    "bad sound, awful acting",
    "a poor copy of something",
    "fine",
    "the plot is bad but the music is great",
)
LABELS = torch.tensor([1, 1, 0, 0, 1, 1])


def word_logits(raws: Sequence[Raw]) -> Tensor:
    """Logits ``(n, 2)``: plus and minus half the sum of the words' scores; unknown words count slightly against."""
    rows = []
    for raw in raws:
        text = raw if isinstance(raw, str) else raw[1]
        words = re.findall(r"\w+", text.lower())
        rows.append(sum(SCORES.get(word, 0.0) for word in words) - 1e-3 * (1 + len(words) % 7))
    s = torch.tensor(rows)
    return torch.stack([-s, s], 1) / 2


def recorder(logits: Callable[[Sequence[Raw]], Tensor]) -> tuple[Callable[[Sequence[Raw]], Tensor], list[str]]:
    """The model and a list that every text it is asked about is added to."""
    seen: list[str] = []

    def asked(raws: Sequence[Raw]) -> Tensor:
        seen.extend(raw if isinstance(raw, str) else raw[1] for raw in raws)
        return logits(raws)

    return asked, seen


WORDS = sorted(
    {*SCORES, "this", "film", "is", "a", "and", "story", "told", "well", "sound", "acting", "copy", "of", "something"}
    | {
        "the",
        "plot",
        "but",
        "music",
        "not",
        "cat",
        "dog",
        "tree",
        "house",
        "river",
        "stone",
        "我",
        "喜",
        "欢",
        "电",
        "影",
    }
)


def tiny_bert(
    folder: Path, classes: tuple[str, ...] = ("negative", "positive"), longest: int = 64, layers: int = 1
) -> Path:
    """A Hugging Face folder: a small BERT taught to tell good words of the toy world from bad ones."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    letters = [chr(c) for c in range(97, 123)]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters,
        *(f"##{x}" for x in letters),
        "!",
        ",",
    ]
    tokens = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(WordPiece(tokens, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=longest,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_labels": len(classes)}
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=longest, **options, hidden_dropout_prob=0.0,
        id2label=dict(enumerate(classes)), label2id={name: i for i, name in enumerate(classes)},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    _teach(model, fast)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    return folder


def _teach(model: Any, tokenizer: Any) -> None:
    """A few steps on sentences of the toy world: enough to tell good from bad."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    known = list(WORDS)
    for _ in range(60):
        drawn = torch.randint(len(known), (24, 6), generator=generator)
        texts = [" ".join(known[i] for i in row) for row in drawn.tolist()]
        y = word_logits(texts).argmax(1)
        output = model(**tokenizer(texts, padding=True, return_tensors="pt"))
        loss = torch.nn.functional.cross_entropy(output.logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
