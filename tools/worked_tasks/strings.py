"""Examples of small tasks on letters, words and sentences: each function makes one (input, answer).

Which instruction goes with a function stands in ``data/tasks_*.txt`` (``from: code NAME``).
"""

import random
from pathlib import Path

from tools.worked_tasks.registry import Registry

STRINGS = Registry()

DATA = Path(__file__).with_name("data")
VOWELS = "aeiou"


def read_list(name: str) -> str:
    """The text of a file in ``data``."""
    return (DATA / name).read_text(encoding="utf-8")


WORDS = tuple(read_list("words.txt").split())
SENTENCES = tuple(read_list("sentences.txt").strip().splitlines())
PALINDROMES = (
    "level",
    "radar",
    "civic",
    "noon",
    "kayak",
    "madam",
    "refer",
    "rotor",
    "stats",
    "deed",
    "solos",
    "tenet",
)
ANAGRAMS = (
    *(
        "listen silent",
        "night thing",
        "earth heart",
        "stop post",
        "tea eat",
        "save vase",
        "lemon melon",
    ),
    *(
        "study dusty",
        "cat act",
        "race care",
        "below elbow",
        "stressed desserts",
        "inch chin",
        "arc car",
    ),
    *("god dog", "evil live", "brag grab", "cheap peach", "state taste", "bored robed"),
)


def _words(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(WORDS, rng.randint(low, high))


def _bare(sentence: str) -> list[str]:
    return sentence.rstrip(".").split()


@STRINGS
def _count_letters(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    return word, str(len(word))


@STRINGS
def _count_words(rng: random.Random) -> tuple[str, str]:
    sentence = rng.choice(SENTENCES)
    return sentence, str(len(sentence.split()))


@STRINGS
def _count_vowels(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    return word, str(sum(letter in VOWELS for letter in word))


@STRINGS
def _count_a_letter(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    letter = rng.choice(word if rng.random() < 0.8 else "aeiou")
    return f"{letter} in {word}", str(word.count(letter))


@STRINGS
def _last_letter(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    return word, word[-1]


@STRINGS
def _second_letter(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    return word, word[1]


@STRINGS
def _third_letter(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    return word, word[2]


@STRINGS
def _last_three(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    return word, word[-3:]


@STRINGS
def _reverse_word(rng: random.Random) -> tuple[str, str]:
    word = rng.choice([word for word in WORDS if len(word) < 7])
    return word, word[::-1]


@STRINGS
def _reverse_words(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 3, 5)
    return " ".join(words), " ".join(reversed(words))


@STRINGS
def _upper(rng: random.Random) -> tuple[str, str]:
    text = rng.choice([rng.choice(WORDS), " ".join(_words(rng, 2, 3)), rng.choice(SENTENCES)])
    return text, text.upper()


@STRINGS
def _lower(rng: random.Random) -> tuple[str, str]:
    given, answer = _upper(rng)
    return answer, given.lower()


@STRINGS
def _title(rng: random.Random) -> tuple[str, str]:
    text = " ".join(_words(rng, 2, 4))
    return text, text.title()


@STRINGS
def _remove_vowels(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    return word, "".join(letter for letter in word if letter not in VOWELS)


@STRINGS
def _remove_spaces(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 2, 4)
    return " ".join(words), "".join(words)


@STRINGS
def _hyphenate(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 2, 4)
    return " ".join(words), "-".join(words)


@STRINGS
def _snake_case(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 2, 3)
    return " ".join(words).capitalize(), "_".join(words)


@STRINGS
def _spell_out(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    return word, "-".join(word)


@STRINGS
def _sort_words(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 3, 5)
    return ", ".join(words), ", ".join(sorted(words))


@STRINGS
def _sort_letters(rng: random.Random) -> tuple[str, str]:
    word = rng.choice([word for word in WORDS if len(word) < 6])
    return word, "".join(sorted(word))


@STRINGS
def _concatenate(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(WORDS, 2)
    return f"{a}, {b}", a + b


@STRINGS
def _repeat_twice(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    return word, f"{word} {word}"


@STRINGS
def _repeat_times(rng: random.Random) -> tuple[str, str]:
    word, times = rng.choice(WORDS), rng.randint(2, 4)
    return f"{word} {times}", " ".join([word] * times)


@STRINGS
def _swap_words(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(WORDS, 2)
    return f"{a} {b}", f"{b} {a}"


@STRINGS
def _longer_word(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(WORDS, 2)
    while len(a) == len(b):
        b = rng.choice(WORDS)
    return f"{a}, {b}", max(a, b, key=len)


@STRINGS
def _shortest_word(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 3, 4)
    while sorted(map(len, words))[0] == sorted(map(len, words))[1]:
        words = _words(rng, 3, 4)
    return ", ".join(words), min(words, key=len)


@STRINGS
def _last_word(rng: random.Random) -> tuple[str, str]:
    sentence = rng.choice(SENTENCES)
    return sentence, _bare(sentence)[-1]


@STRINGS
def _opening_word(rng: random.Random) -> tuple[str, str]:
    sentence = rng.choice(SENTENCES)
    return sentence, _bare(sentence)[0]


@STRINGS
def _middle_word(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(WORDS, 3)
    return " ".join(words), words[1]


@STRINGS
def _last_item(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 3, 5)
    return ", ".join(words), words[-1]


@STRINGS
def _second_item(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 3, 5)
    return ", ".join(words), words[1]


@STRINGS
def _drop_last(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    return word, word[:-1]


@STRINGS
def _add_exclamation(rng: random.Random) -> tuple[str, str]:
    sentence = rng.choice(SENTENCES)
    return sentence, sentence.rstrip(".") + "!"


@STRINGS
def _quote(rng: random.Random) -> tuple[str, str]:
    text = " ".join(_words(rng, 1, 3))
    return text, f'"{text}"'


@STRINGS
def _palindrome(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(PALINDROMES) if rng.random() < 0.4 else rng.choice(WORDS)
    return word, "yes" if word == word[::-1] else "no"


@STRINGS
def _anagram(rng: random.Random) -> tuple[str, str]:
    a, b = rng.choice(ANAGRAMS).split()
    if rng.random() < 0.5:
        b = rng.choice(rng.choice(ANAGRAMS).split())
    return f"{a}, {b}", "yes" if sorted(a) == sorted(b) and a != b else "no"


@STRINGS
def _contains_letter(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    letter = rng.choice(word) if rng.random() < 0.5 else rng.choice("bcdfghklmnpqrst")
    return f"{word}, {letter}", "yes" if letter in word else "no"


@STRINGS
def _repeated_word(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 3, 4)
    twice = rng.choice(words)
    mixed = [*words, twice]
    rng.shuffle(mixed)
    return " ".join(mixed), twice


@STRINGS
def _count_commas(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 2, 6)
    return ", ".join(words), str(len(words))
