"""Signs that a text is written to be read, whatever it says."""

import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\W\d_][\w'-]*|\d+(?:[./]\d+)*")
_WINDOW = 30


def words(text: str) -> list[str]:
    """Words and numbers, in lower case."""
    return _WORD.findall(text.lower())


def distinct_share(found: Sequence[str]) -> float:
    """Distinct words over words, averaged over windows of 30 words; in (0, 1], 0 without words.

    The moving average makes long texts comparable with short ones (Covington and McFall 2010,
    "Cutting the Gordian Knot: the moving-average type-token ratio").
    """
    if not found:
        return 0.0
    size = min(_WINDOW, len(found))
    windows = [found[first : first + size] for first in range(len(found) - size + 1)]
    return sum(len(set(window)) for window in windows) / (size * len(windows))


def number_share(found: Sequence[str]) -> float:
    """Numbers over words and numbers, in [0, 1]."""
    return sum(word[0].isdigit() for word in found) / len(found) if found else 0.0


def readability(text: str) -> float:
    """How far a text neither repeats itself nor is mostly numbers, in [0, 1].

    Instructions of the shipped domains have a distinct share over 0.63 and a number share under
    0.24; full marks end a little beyond. Nothing is left at a distinct share of 0.4 or a number
    share of 0.45, where a policy goes that is trained on a judge of topics alone ("2 tablespoons:
    1 cup, 2 tablespoons: 1 cup").
    """
    found = words(text)
    varied = (distinct_share(found) - 0.4) / 0.2
    worded = (0.45 - number_share(found)) / 0.2
    return max(0.0, min(1.0, varied)) * max(0.0, min(1.0, worded))
