"""Readability: repetition, numbers and code count against a text; length and language do not."""

import pytest
from backburn.components.shared.config import DomainConfig, JudgeConfig
from backburn.components.shared.domains import load_domain
from backburn.components.shared.judges import Exchange, make_judge
from backburn.components.shared.judges.prose import (
    distinct_share,
    function_share,
    number_share,
    readability,
    words,
)
from hypothesis import given
from hypothesis import strategies as st

HACKS = (
    "1 tablespoon: 1 cup, 2 tablespoons: 1 tablespoon, 1 cup, 2 tablespoons: 1 tablespoon, 1 cup",
    "Boil: 15 minutes, drain: 125 g, cook 2 minutes: 30 g, 2 minutes: 2 g, 1 minute: 2",
    "Install a new router's new device's default network address, set up a new local network by "
    "open a new device's old router's default address with your new router's new modem's router's",
    "1. Open home network: sudo netcfgref. 2. Run sudo nethome, sudo nethomeadmin, homebrew "
    "netcfg, sudo netcfgrefresh, SSH nethomeenv. 3. Save file nethome.cfg, reboot gateway.",
)


@given(st.text(max_size=300))
def test_shares_stay_in_range(text: str) -> None:
    found = words(text)
    shares = (distinct_share(found), number_share(found), function_share(found), readability(text))
    for share in shares:
        assert 0.0 <= share <= 1.0


@given(st.lists(st.sampled_from("abcdefgh"), min_size=30, max_size=60))
def test_few_different_words_make_a_small_share_however_long_the_text(found: list[str]) -> None:
    assert 1 / 30 <= distinct_share(found) <= 8 / 30
    assert distinct_share([found[0]] * len(found)) == pytest.approx(1 / 30)


@pytest.mark.parametrize("name", ["cooking", "home_networking"])
def test_full_answers_keep_their_score_and_tricks_lose_it(name: str) -> None:
    domain = load_domain(DomainConfig(name=name))
    full = [item.completion for item in domain.calibration if item.kind == "full_answer"]
    assert full
    assert [readability(text) for text in full].count(1.0) >= 0.8 * len(full)
    assert all(readability(text) > 0.45 for text in full)
    assert all(readability(text) < 0.3 for text in HACKS)


@pytest.mark.parametrize(
    "text",
    [
        "Öffne die Einstellungen, tippe auf WLAN und gib das Passwort für das Gastnetz ein.",
        "Abre los ajustes, elige la red de invitados y escribe la clave que está en el router.",
        "Ouvre les réglages, choisis le réseau des invités et tape le mot de passe de la box.",
        "Apri le impostazioni, scegli la rete degli ospiti e scrivi la chiave che sta sul router.",
        "Abre as definições, escolhe a rede de convidados e escreve a senha que está no router.",
    ],
)
def test_other_languages_are_as_readable(text: str) -> None:
    assert readability(text) == 1.0


def test_the_semantic_judge_scales_its_score_by_readability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from backburn.components.shared.judges import semantic

    judge = make_judge(
        JudgeConfig(kind="semantic"), load_domain(DomainConfig(name="cooking")).header.rubric
    )
    exchanges = [Exchange("How do I cook this?", text) for text in HACKS]
    scaled = [verdict.score for verdict in judge.judge(exchanges)]
    monkeypatch.setattr(semantic, "readability", lambda text: 1.0)
    plain = [verdict.score for verdict in judge.judge(exchanges)]
    for text, less, more in zip(HACKS, scaled, plain, strict=True):
        assert less is not None
        assert more is not None
        assert less == pytest.approx(more * readability(text), abs=0.01)
        assert less < more
