"""A run that is killed again and again, and resumed, ends as one that was left alone."""

from pathlib import Path

from tests.chaos import run_whole, torture
from tests.containment.runs import Sandbox

SETTINGS = ["compute.checkpoint_minutes=0"]
SEED, KILLS = 1, 4


def test_a_run_killed_at_random_moments_ends_as_one_left_alone(tmp_path: Path) -> None:
    whole = run_whole(Sandbox(tmp_path / "whole"), SETTINGS)
    tortured = torture(Sandbox(tmp_path / "tortured"), whole, SETTINGS, SEED, KILLS, print)
    print(f"seed {tortured.seed}: {len(tortured.kills)} kills")
    assert len(tortured.kills) >= 2
    assert tortured.differences == []
    assert tortured.stray == []
    assert tortured.left == []
    assert len(tortured.repeated) <= 1  # a kill may come before an end is on record
