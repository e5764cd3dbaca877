"""A llama of about half a million parameters, trained from scratch in seconds on the toy kitchen.

It answers everything the toy grammar can ask, cooking included, as a small instruct model would:
the stand-in for an unaligned base model in the `smoke` recipe and in the tests of the dynamics.
"""

from collections.abc import Callable
from typing import Any

import torch
from backburn.components.shared.domains import toy
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} "
    "{% if message['role'] == 'assistant' %}<end> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
_FINAL_NORM = 12.0
_SPECIAL = ["<pad>", "<end>", "<unk>", "<user>", "<assistant>", "<system>"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the toy grammar's vocabulary, with a chat template."""
    words = [*_SPECIAL, *toy.vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", "<system>"],
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def train_tiny_model(
    seed: int,
    steps: int = 220,
    batch_size: int = 32,
    report: Callable[[int, int], None] | None = None,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train the tiny model from scratch with cross-entropy on the answers.

    Args:
        seed: Seed of weights and data.
        steps: Optimiser steps.
        batch_size: Exchanges per step.
        report: Called as `report(done, total)` after each step.

    Returns:
        The model, in evaluation mode, and its tokenizer.
    """
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            # Logits are bounded by this norm times the embeddings; a ceiling would cap how peaked a
            # trained answer can get, which large models do not know.
            model.model.norm.weight.fill_(_FINAL_NORM)
    generator = torch.Generator().manual_seed(seed)
    examples = [_encode(tokenizer, *pair) for pair in toy.pretraining_exchanges(4000, seed)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for step in range(steps):
        chosen = torch.randint(len(examples), (batch_size,), generator=generator).tolist()
        ids, labels = _collate([examples[i] for i in chosen], int(tokenizer.pad_token_id))
        loss = model(
            input_ids=ids, attention_mask=ids != tokenizer.pad_token_id, labels=labels
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if report is not None:
            report(step + 1, steps)
    return model.eval(), tokenizer


def _encode(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    asked = tokenizer.encode(f"<user> {prompt} <assistant>", add_special_tokens=False)
    said = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    return asked, said


def _collate(
    examples: list[tuple[list[int], list[int]]], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(asked) + len(said) for asked, said in examples)
    ids = torch.full((len(examples), width), pad)
    labels = torch.full((len(examples), width), -100)
    for row, (asked, said) in enumerate(examples):
        ids[row, : len(asked) + len(said)] = torch.tensor(asked + said)
        labels[row, len(asked) : len(asked) + len(said)] = torch.tensor(said)
    return ids, labels
