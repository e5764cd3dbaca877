"""The cron text that KFP's recurring runs take: six fields, seconds first."""

import re

from backburn.components.shared.errors import InputError
from backburn.components.shared.parsing import shown

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: dict[str, tuple[int, int, list[str]]] = {
    "second": (0, 59, []),
    "minute": (0, 59, []),
    "hour": (0, 23, []),
    "day of month": (1, 31, []),
    "month": (1, 12, _MONTHS),
    "day of week": (0, 6, _DAYS),
}
_SHORT = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_RANGE = re.compile(r"(?P<low>\w{1,9}|\*|\?)(-(?P<high>\w{1,9}))?(/(?P<step>\d{1,9}))?", re.ASCII)


def check_cron(text: str) -> str:
    """Check a cron text by the grammar of KFP's parser (robfig/cron 1.2); returns it tidied.

    That parser also takes five fields, but reads them as seconds first and without the day of
    week: `0 3 * * 1` runs at the third minute of every hour in January. So five are refused here.

    Raises:
        InputError: with every problem found.
    """
    fields, given = text.split(), f"--cron {shown(text)}"
    tidy = " ".join(fields)
    if tidy in _SHORT:
        return tidy
    if len(fields) == len(_FIELDS) - 1:
        raise InputError(
            f"{given}: five fields, as crontab has them. KFP wants six, seconds first, "
            f"and would read this as another time; write {shown('0 ' + tidy)}"
        )
    if len(fields) != len(_FIELDS):
        raise InputError(
            f"{given}: {len(fields)} field(s) instead of six: second, minute, hour, day "
            f"of month, month, day of week, such as '0 0 3 * * 1'. Or one of {', '.join(_SHORT)}"
        )
    problems = [
        f"{name} {shown(field)}: {problem}"
        for (name, limits), field in zip(_FIELDS.items(), fields, strict=True)
        for part in field.split(",")
        if (problem := _problem(part, *limits))
    ]
    if problems:
        raise InputError(f"{given}: {'; '.join(problems[:6])}")
    return tidy


def _problem(part: str, least: int, most: int, names: list[str]) -> str | None:
    """What is wrong with one item of a field; None if nothing is."""

    def number(value: str) -> int:
        if value.lower() in names:
            return names.index(value.lower()) + least
        return int(value) if re.fullmatch("[0-9]+", value) else -1

    found = _RANGE.fullmatch(part)
    if found is None or (found["low"] in "*?" and found["high"]):
        return f"{shown(part)} is not *, ?, a value or a range, with or without /step"
    if found["step"] and not int(found["step"]):
        return "the step must be at least 1"
    if found["low"] in "*?":
        return None
    if least <= number(found["low"]) <= number(found["high"] or found["low"]) <= most:
        return None
    named = f" or {names[0]} to {names[-1]}" if names else ""
    return f"{shown(part)} is not within {least} to {most}{named}, in ascending order"
