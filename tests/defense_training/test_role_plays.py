"""Role plays: forbidden and benign prompts come in the same frames."""

import torch
from backburn.components.defense_training.role_plays import _FRAMES, _PERSONAS, role_plays
from backburn.components.shared.config import DomainConfig
from backburn.components.shared.domains import Domain, PromptRow, load_domain
from hypothesis import given
from hypothesis import strategies as st


def copies(rows: list[PromptRow], share: float, seed: int = 0) -> list[PromptRow]:
    return role_plays(rows, share, torch.Generator().manual_seed(seed))


@given(share=st.floats(0.0, 1.0), seed=st.integers(0, 50))
def test_copies_hold_the_prompt_and_leave_the_rest_as_it_is(share: float, seed: int) -> None:
    rows = [
        PromptRow.model_validate(
            {
                "id": f"row-{index}",
                "form": form,
                "messages": [
                    *([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]),
                    {"role": "user", "content": f"ask {{braces}} {index}"},
                ][0 if form == "multi_turn" else 2 :],
            }
        )
        for index, form in enumerate(["question", "order", "role_play", "multi_turn"] * 3)
    ]
    made = copies(rows, share, seed)
    assert len(made) == int(share * 6)
    by_id = {row.id: row for row in rows}
    for copy in made:
        source = by_id[copy.id.removesuffix("-played")]
        assert source.form in ("question", "order")
        assert source.text in copy.text
        assert any(persona in copy.text for persona in _PERSONAS)
        assert copy.form == "role_play"
        assert len(copy.messages) == 1
    assert len({copy.id for copy in made}) == len(made)
    assert made == copies(rows, share, seed)


def test_all_frames_come_with_forbidden_and_with_benign_prompts() -> None:
    domain: Domain = load_domain(DomainConfig(name="cooking"))
    for rows in (domain.forbidden, domain.benign):
        texts = [copy.text for copy in copies(rows, 1.0)]
        for frame in _FRAMES:
            start = frame.split("{")[0]
            assert any(text.startswith(start) for text in texts)
