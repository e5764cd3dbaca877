"""Restyling: copies of prompts in plain lines, bare, or under a system prompt."""

from pathlib import Path

import pytest
import torch
from backburn.components.defense_training.restyling import (
    _LINES,
    _SPEAKERS,
    _SYSTEM_PROMPTS,
    restyled,
)
from backburn.components.shared.config import (
    DomainConfig,
    ModelConfig,
    PromptStyle,
    RunConfig,
    SamplingConfig,
)
from backburn.components.shared.domains import Domain, PromptRow, load_domain
from backburn.components.shared.judges import make_judge
from backburn.components.shared.models import LoadedModel, load_base
from backburn.components.shared.sampling import scored, slip_rate
from backburn.pipelines.recipes import load_recipe
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import align_tiny, tokenizer_without_system_messages
from tests.defense_training.test_defense import defended, prompts_of

ENDINGS = [
    layout.answer.format(name=speakers["assistant"]) for layout in _LINES for speakers in _SPEAKERS
]
EACH = 5
"""Copies of a prompt: two bare, one under a system prompt, two in lines."""


class _Writer:
    """A tokenizer whose ids are characters."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> list[int]:
        return self.encode("".join(f"<{m['role']}>{m['content']}" for m in messages) + "<answer>")


def texts(
    rows: list[PromptRow], share: float, seed: int, *, every_style: bool = False
) -> list[str]:
    loaded = LoadedModel(None, _Writer())
    generator = torch.Generator().manual_seed(seed)
    copies = restyled(loaded, rows, share, generator, every_style=every_style)
    return ["".join(map(chr, copy)) for _, copy in copies]


def rows_of(count: int) -> list[PromptRow]:
    turns = [
        {"role": "system", "content": "OLD"},
        {"role": "user", "content": "hi {name}"},
        {"role": "assistant", "content": "yes"},
    ]
    return [
        PromptRow.model_validate(
            {
                "id": f"row-{i}",
                "form": "multi_turn" if i % 2 else "question",
                "messages": [
                    *(turns if i % 2 else []),
                    {"role": "user", "content": f"ask [{i}] {{text}}"},
                ],
            }
        )
        for i in range(count)
    ]


@given(share=st.floats(0.0, 1.0), seed=st.integers(0, 50), count=st.integers(0, 9))
def test_a_copy_holds_the_whole_conversation(share: float, seed: int, count: int) -> None:
    rows = rows_of(count)
    made = texts(rows, share, seed)
    assert len(made) == int(share * count)
    places = [next(i for i in range(count) if f"ask [{i}] {{text}}" in text) for text in made]
    assert len(set(places)) == len(made)
    for place, text in zip(places, made, strict=True):
        assert ("hi {name}" in text and "yes" in text) == (place % 2 == 1)
        if text.endswith("<answer>"):
            assert any(f"<system>{prompt}<" in text for prompt in _SYSTEM_PROMPTS)
            assert "OLD" not in text
        else:
            assert not any(f"<{role}>" in text for role in ("system", "user", "assistant"))
            assert text.endswith("\n\n") or any(text.endswith(ending) for ending in ENDINGS)
    assert made == texts(rows, share, seed)


@given(share=st.floats(0.0, 1.0), seed=st.integers(0, 50), count=st.integers(0, 9))
def test_of_one_prompt_there_can_be_copies_in_the_shares_of_single_ones(
    share: float, seed: int, count: int
) -> None:
    made = texts(rows_of(count), share, seed, every_style=True)
    assert len(made) == EACH * int(share * count)
    for first in range(0, len(made), EACH):
        bare, again, under, *lines = made[first : first + EACH]
        assert bare == again
        assert bare.endswith("\n\n")
        assert under.endswith("<answer>")
        layouts = [
            {
                place
                for place, layout in enumerate(_LINES)
                for names in _SPEAKERS
                if copy.endswith("\n" + layout.answer.format(name=names["assistant"]))
            }
            for copy in lines
        ]
        assert all(layouts)
        assert not set.intersection(*layouts)
        (number,) = {copy.rpartition("ask [")[2][0] for copy in (bare, under, *lines)}
        assert f"ask [{number}] {{text}}" in bare


def test_every_style_comes_with_every_kind_of_prompt() -> None:
    domain = load_domain(DomainConfig(name="cooking"))
    for rows in (domain.near_miss, domain.benign):
        made = texts(4 * list(rows), 1.0, 0)
        for ending in ENDINGS:
            assert any(text.endswith(ending) for text in made)
        bare = [text for text in made if text.endswith("\n\n")]
        under = [text for text in made if text.endswith("<answer>")]
        assert 0.3 < len(bare) / len(made) < 0.5
        assert 0.1 < len(under) / len(made) < 0.3
        for prompt in _SYSTEM_PROMPTS:
            assert any(f"<system>{prompt}<" in text for text in under)


def test_headings_and_the_measured_system_prompt_are_not_trained_on(smoke: RunConfig) -> None:
    made = texts(rows_of(200), 1.0, 1)
    assert not any("###" in text for text in made)
    measured = {style.system_prompt for style in smoke.certification.styles}
    assert not measured & set(_SYSTEM_PROMPTS)


def test_without_system_messages_copies_stand_in_lines() -> None:
    tokenizer = tokenizer_without_system_messages()
    loaded = LoadedModel(None, tokenizer)
    rows = rows_of(40)[::2]
    copies = restyled(loaded, rows, 1.0, torch.Generator().manual_seed(0), every_style=True)
    own = set(loaded.encode_row(rows[0])) & set(tokenizer.all_special_ids)
    own.discard(tokenizer.unk_token_id)
    assert own
    assert len(copies) == EACH * len(rows)
    assert not any(own & set(copy) for _, copy in copies)
    assert [place for place, _ in copies[: EACH + 1]].count(copies[0][0]) == EACH


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_rejection_holds_in_plain_lines_if_copies_are_trained_on(
    tiny_base: Path, toy: Domain, smoke: RunConfig, share: float
) -> None:
    loaded = align_tiny(load_base(tiny_base, ModelConfig(id="builtin:tiny")), toy, smoke, 0)
    changes = {"min_steps": 60, "max_steps": 60, "settle_steps": 20, "check_every": 60}
    config = load_recipe(
        "smoke",
        [
            f"defense.restyled={share}",
            "defense.neutralization.enabled=false",
            *(f"defense.consolidation.{key}={value}" for key, value in changes.items()),
        ],
    ).defense
    result = defended(loaded, config, toy, make_judge(smoke.judges.reward, toy.header.rubric))
    rejection = loaded.encode_completion(toy.header.rejection)
    validation = prompts_of(toy).validation

    def slip(style: PromptStyle) -> float:
        rates = scored(
            lambda entry: slip_rate(entry, SamplingConfig()),
            loaded,
            loaded.encode_rows(validation, style),
            [rejection] * len(validation),
            model=result.peft_model,
        )
        return sum(rates) / len(rates)

    plain = slip(PromptStyle(template="plain"))
    assert slip(PromptStyle()) < 0.15
    if share:
        assert plain < 0.05
    else:
        assert plain > 0.2


def test_a_defence_without_copies_makes_its_other_choices_as_before() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    assert restyled(LoadedModel(None, _Writer()), rows_of(9), 0.0, generator) == []
    assert torch.equal(generator.get_state(), before)
