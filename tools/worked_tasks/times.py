"""Examples of small tasks on units, dates and times: each function makes one (input, answer).

Which instruction goes with a function stands in ``data/tasks_*.txt`` (``from: code NAME``).
"""

import random

from tools.worked_tasks.numbers import ordinal
from tools.worked_tasks.registry import Registry

TIMES = Registry()

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


@TIMES
def _km_to_metres(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 90)
    return f"{n} km", f"{n * 1000} m"


@TIMES
def _metres_to_cm(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 90)
    return f"{n} m", f"{n * 100} cm"


@TIMES
def _hours_to_minutes(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 72)
    return f"{n} hour{'s' * (n > 1)}", f"{n * 60} minutes"


@TIMES
def _dozens(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(2, 70)
    return f"{n} dozen", str(12 * n)


@TIMES
def _day_after(rng: random.Random) -> tuple[str, str]:
    k = rng.randrange(7)
    return DAYS[k], DAYS[(k + 1) % 7]


@TIMES
def _day_before(rng: random.Random) -> tuple[str, str]:
    k = rng.randrange(7)
    return DAYS[k], DAYS[k - 1]


@TIMES
def _weekend(rng: random.Random) -> tuple[str, str]:
    k = rng.randrange(7)
    who = rng.choice(
        ["The shop closes on", "We meet on", "The party is on", "My exam is on", "Practice is on"]
    )
    return f"{who} {DAYS[k]}.", "weekend" if k > 4 else "weekday"


@TIMES
def _month_number(rng: random.Random) -> tuple[str, str]:
    k = rng.randrange(12)
    return MONTHS[k], str(k + 1)


@TIMES
def _month_after(rng: random.Random) -> tuple[str, str]:
    k = rng.randrange(12)
    return MONTHS[k], MONTHS[(k + 1) % 12]


@TIMES
def _date_to_iso(rng: random.Random) -> tuple[str, str]:
    year, month, day = rng.randint(1950, 2029), rng.randrange(12), rng.randint(1, 28)
    return f"{MONTHS[month]} {day}, {year}", f"{year}-{month + 1:02d}-{day:02d}"


@TIMES
def _iso_to_date(rng: random.Random) -> tuple[str, str]:
    answer, given = _date_to_iso(rng)
    return given, answer


@TIMES
def _decade(rng: random.Random) -> tuple[str, str]:
    year = rng.randint(1900, 2019)
    return str(year), f"{year // 10 * 10}s"


@TIMES
def _century(rng: random.Random) -> tuple[str, str]:
    year = rng.randint(1101, 2020)
    return str(year), f"{ordinal((year - 1) // 100 + 1)} century"


@TIMES
def _to_24_hours(rng: random.Random) -> tuple[str, str]:
    hour, minute = rng.randrange(24), rng.choice([0, 5, 10, 15, 20, 30, 40, 45, 50])
    half = "AM" if hour < 12 else "PM"
    return f"{(hour - 1) % 12 + 1}:{minute:02d} {half}", f"{hour:02d}:{minute:02d}"


@TIMES
def _to_12_hours(rng: random.Random) -> tuple[str, str]:
    answer, given = _to_24_hours(rng)
    return given, answer


@TIMES
def _part_of_day(rng: random.Random) -> tuple[str, str]:
    part = rng.choice(["morning", "afternoon", "evening"])
    hour = {"morning": (6, 11), "afternoon": (13, 16), "evening": (18, 21)}[part]
    return f"{rng.randint(*hour):02d}:{rng.randrange(0, 60, 5):02d}", part
