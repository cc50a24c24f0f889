"""Examples of small tasks on numbers and tiny programs: each function makes one (input, answer).

Which instruction goes with a function stands in ``data/tasks_*.txt`` (``from: code NAME``).
"""

import random

from tools.worked_tasks.registry import Registry

NUMBERS = Registry()

ROMAN = (
    *((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X")),
    *((9, "IX"), (5, "V"), (4, "IV"), (1, "I")),
)


def roman(number: int) -> str:
    """The Roman numeral of 1..399."""
    text = ""
    for value, letters in ROMAN:
        text += letters * (number // value)
        number %= value
    return text


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, … 11th."""
    ending = (
        "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    )
    return f"{number}{ending}"


def _numbers(rng: random.Random, low: int, high: int, count: int) -> list[int]:
    return rng.sample(range(low, high), count)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _yes(claim: bool) -> str:
    return "yes" if claim else "no"


@NUMBERS
def _add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(1, 60), rng.randint(1, 60)
    return f"{a} {b}", str(a + b)


@NUMBERS
def _add_three(rng: random.Random) -> tuple[str, str]:
    numbers = [rng.randint(1, 20) for _ in range(3)]
    return _listed(numbers), str(sum(numbers))


@NUMBERS
def _multiply(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    return f"{a} {b}", str(a * b)


@NUMBERS
def _divide(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(2, 12), rng.randint(2, 10)
    return f"{a * b} / {b}", str(a)


@NUMBERS
def _double(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 200)
    return str(n), str(2 * n)


@NUMBERS
def _triple(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 60)
    return str(n), str(3 * n)


@NUMBERS
def _halve(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 120)
    return str(2 * n), str(n)


@NUMBERS
def _square(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 40)
    return str(n), str(n * n)


@NUMBERS
def _add_ten(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 150)
    return str(n), str(n + 10)


@NUMBERS
def _next_number(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 400)
    return str(n), str(n + 1)


@NUMBERS
def _even_odd(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 500)
    return str(n), "odd" if n % 2 else "even"


@NUMBERS
def _larger_number(rng: random.Random) -> tuple[str, str]:
    a, b = _numbers(rng, 1, 1000, 2)
    return f"{a}, {b}", str(max(a, b))


@NUMBERS
def _smaller_number(rng: random.Random) -> tuple[str, str]:
    a, b = _numbers(rng, 1, 1000, 2)
    return f"{a}, {b}", str(min(a, b))


@NUMBERS
def _compare_sign(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    b = a if rng.random() < 0.25 else b
    return f"{a} and {b}", "<" if a < b else ">" if a > b else "="


@NUMBERS
def _list_maximum(rng: random.Random) -> tuple[str, str]:
    numbers = _numbers(rng, 1, 100, rng.randint(3, 6))
    return _listed(numbers), str(max(numbers))


@NUMBERS
def _list_minimum(rng: random.Random) -> tuple[str, str]:
    numbers = _numbers(rng, 1, 100, rng.randint(3, 6))
    return _listed(numbers), str(min(numbers))


@NUMBERS
def _sort_numbers(rng: random.Random) -> tuple[str, str]:
    numbers = _numbers(rng, 1, 100, rng.randint(3, 5))
    return _listed(numbers), _listed(sorted(numbers))


@NUMBERS
def _sort_descending(rng: random.Random) -> tuple[str, str]:
    numbers = _numbers(rng, 1, 100, rng.randint(3, 5))
    return _listed(numbers), _listed(sorted(numbers, reverse=True))


@NUMBERS
def _count_items(rng: random.Random) -> tuple[str, str]:
    numbers = _numbers(rng, 1, 100, rng.randint(2, 8))
    return _listed(numbers), str(len(numbers))


@NUMBERS
def _set_member(rng: random.Random) -> tuple[str, str]:
    numbers = _numbers(rng, 1, 50, 5)
    asked = (
        rng.choice(numbers) if rng.random() < 0.5 else rng.choice([*set(range(50)) - {*numbers}])
    )
    return f"{asked} in {{{_listed(numbers)}}}", _yes(asked in numbers)


@NUMBERS
def _next_in_sequence(rng: random.Random) -> tuple[str, str]:
    start, step = rng.randint(1, 30), rng.randint(2, 12)
    return _listed([start + k * step for k in range(4)]), str(start + 4 * step)


@NUMBERS
def _round_ten(rng: random.Random) -> tuple[str, str]:
    n = rng.choice([n for n in range(11, 500) if n % 10 != 5])
    return str(n), str((n + 5) // 10 * 10)


@NUMBERS
def _round_whole(rng: random.Random) -> tuple[str, str]:
    whole, tenth = rng.randint(1, 90), rng.choice([1, 2, 3, 4, 6, 7, 8, 9])
    return f"{whole}.{tenth}", str(whole + (tenth > 5))


@NUMBERS
def _multiple_of_five(rng: random.Random) -> tuple[str, str]:
    n = 5 * rng.randint(1, 60) if rng.random() < 0.5 else rng.randint(1, 300)
    return str(n), _yes(n % 5 == 0)


@NUMBERS
def _over_hundred(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 99) if rng.random() < 0.5 else rng.randint(101, 999)
    return str(n), _yes(n > 100)


@NUMBERS
def _is_prime(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(2, 99)
    return str(n), "prime" if all(n % k for k in range(2, n)) else "not prime"


@NUMBERS
def _to_roman(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 120)
    return str(n), roman(n)


@NUMBERS
def _from_roman(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 60)
    return roman(n), str(n)


@NUMBERS
def _to_ordinal(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 130)
    return str(n), ordinal(n)


@NUMBERS
def _to_binary(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 63)
    return str(n), f"{n:b}"


@NUMBERS
def _percent(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 99)
    return f"0.{n:02d}", f"{n}%"


@NUMBERS
def _thousands(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1000, 9_999_999)
    return str(n), f"{n:,}"


@NUMBERS
def _digit_sum(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(10, 999)
    return str(n), str(sum(map(int, str(n))))


@NUMBERS
def _last_digit(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(100, 99999)
    return str(n), str(n % 10)


@NUMBERS
def _count_digits(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 10 ** rng.randint(1, 7) - 1)
    return str(n), str(len(str(n)))


@NUMBERS
def _python_output(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(2, 12), rng.randint(2, 5)
    word = rng.choice(["cat", "sun", "map", "tree", "book"])
    expressions = (
        f"{a} + {b}",
        f"{a} * {b}",
        f"len('{word}')",
        f"'{word}'.upper()",
        f"{a} % {b}",
        f"{a} // {b}",
    )
    asked = rng.choice(
        [*expressions, f"max({a}, {b})", f"sum([{a}, {b}, 1])", f"'{word}' * 2", f"'{word}'[::-1]"]
    )
    return f"print({asked})", str(
        eval(asked, {"__builtins__": {}, "len": len, "max": max, "sum": sum})
    )


@NUMBERS
def _boolean_logic(rng: random.Random) -> tuple[str, str]:
    a, b = rng.choice(["True", "False"]), rng.choice(["True", "False"])
    c, joined = rng.choice(["True", "False"]), rng.choice(["and", "or"])
    texts = (f"{a} {joined} {b}", f"not {a}", f"{a} {joined} not {b}", f"not ({a} {joined} {b})")
    asked = rng.choice([*texts, f"({a} or {b}) and {c}", f"({a} and {b}) or {c}"])
    return asked, str(eval(asked, {"__builtins__": {}}))


@NUMBERS
def _true_equation(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(1, 30), rng.randint(1, 30)
    shown = a + b + (rng.choice([-2, -1, 1, 3]) if rng.random() < 0.5 else 0)
    return f"{a} + {b} = {shown}", "correct" if shown == a + b else "wrong"


@NUMBERS
def _total_price(rng: random.Random) -> tuple[str, str]:
    count, price = rng.randint(2, 9), rng.randint(2, 12)
    thing = rng.choice(["books", "tickets", "pens", "lamps", "mugs", "shirts", "chairs"])
    return f"{count} {thing} at ${price} each", f"${count * price}"


@NUMBERS
def _more_in_total(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(["Tom", "Mia", "Ali", "Sue", "Raj", "Eva", "Leo"])
    thing = rng.choice(["apples", "coins", "stamps", "marbles", "cards", "books"])
    a, b = rng.randint(2, 30), rng.randint(2, 20)
    return f"{name} has {a} {thing} and gets {b} more.", str(a + b)
