"""Hard cases for edits: instructions full of text to protect, and a denoiser that tries to leak.

``test_protection`` and ``test_leaks`` take a few of them, ``tests/benchmarks/edits.py`` many.
"""

import json
import random
import re
from dataclasses import dataclass, field

import dspy
from doubles import CharacterDenoiser, WordDenoiser, rule_lm
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from dspy_diffusion_infill.infiller.proposals import Proposal, touches_protected
from dspy_diffusion_infill.marks import read_marks
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.neighbourhoods import NUM_LEVELS, MaskableText, neighbourhood
from dspy_diffusion_infill.protection import Protection
from dspy_diffusion_infill.template_adapter import TemplateAdapter
from dspy_diffusion_infill.windows import Prefix, SlidingWindow

# Protected text

ESSAY = dspy.Signature("essay -> score")
PROSE = (
    "Read it with care and say what you think",
    "Rate from 1 to 5 in at most 3 sentences; be brief",
    "请仔细阅读这段文字然后回答",
    "اقرأ النص بعناية ثم أجب",
    "קרא את הטקסט",
    "Be kind 🙂👩‍👩‍👧 and quick 🚀",
    "naïve café, cliché",
    "a | b, * c * and _d_ `e`",
)
INLINE = (
    "5 km",
    "20 %",
    "10 ms",
    "$5",
    "3.5 GB",
    "€ 1,200",
    "10-minute",
    "2 hours",
    "37 °C",
    "5公里",
    "https://example.org/a_(b)?c=1#d",
    "www.example.org",
    "<answer>",
    "</answer>",
    '<a href="x">',
    "{essay}",
    "[[ ## score ## ]]",
    "score",
    "[[keep]]Never give medical advice.[[/keep]]",
    "[[keep]]不要编造[[/keep]]",
    "[[keep]]🙂🙂[[/keep]]",
)
BLOCKS = (
    "```python\nprint('a  b')\n```",
    "~~~\nx = {1}\n\ny\n~~~",
    "```\r\nif a:\r\n    b\r\n```",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "| 名 | 值 |\n| :-- | --: |\n| x | 🙂 |",
)
FILLS = (
    "",
    " ",
    "5",
    "x",
    ".5",
    "-",
    "\n",
    "\n\n",
    " word",
    " two words",
    "```\n",
    "|",
    "<",
    '"',
    "字",
    "}",
)

_leaf = st.none() | st.booleans() | st.integers(-99, 99) | st.text("ab é字🙂\"'\\", max_size=5)
_values = st.recursive(
    _leaf,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)
_json = st.builds(
    lambda value, indent: json.dumps(value, indent=indent, ensure_ascii=False),
    st.dictionaries(st.text("abc", min_size=1, max_size=3), _values, min_size=1, max_size=3)
    | st.lists(_values, min_size=1, max_size=3),
    st.sampled_from([None, 2]),
)


@dataclass
class Case:
    """Marked instructions, and the literal texts in them that must stay, in order."""

    instructions: str
    literals: list[str]


@st.composite
def cases(draw) -> Case:
    text, literals = draw(st.sampled_from(PROSE)), []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["inline", "inline", "block", "json", "prose"]))
        pool = {"inline": INLINE, "block": BLOCKS, "prose": PROSE}
        part = draw(_json if kind == "json" else st.sampled_from(pool[kind]))
        lines = ["\n", "\r\n", "\n\n"]
        text += draw(st.sampled_from(lines if kind == "block" else [*lines, " ", ", "])) + part
        if kind == "block":
            text += draw(st.sampled_from(["\n\n", "\r\n\r\n"])) + draw(st.sampled_from(PROSE))
        if kind != "prose":
            literals.append(part.removeprefix("[[keep]]").removesuffix("[[/keep]]"))
    return Case(text, literals)


def lost_after_edits(case: Case, seed: int, num_edits: int = 12) -> tuple[list[str], int]:
    """Edits a case again and again; the texts in which a literal is missing, and the edits made."""
    marked, rng = read_marks(case.instructions), random.Random(seed)
    text, lost, made = marked.text, list[str](), 0
    protection = Protection(signature=ESSAY, kept=marked.kept)
    encode = rng.choice([CharacterDenoiser().encode, WordDenoiser().encode])
    maskings = [SlidingWindow(window=rng.choice([1, 3, 8]), stride=1), Prefix(4)]
    for _ in range(num_edits):
        seen = MaskableText(text, encode(text).offsets, protection.spans(text))
        found = neighbourhood(seen, maskings[:1], rng.randrange(NUM_LEVELS))
        found += maskings[1].windows(text, seen.offsets, seen.protected)
        if not found:
            continue
        window = rng.choice(found)
        fills = tuple(rng.choice(FILLS) for _ in window.pieces)
        proposal = Proposal("p", window, fills, window.splice(text, fills), 0.5)
        if touches_protected(proposal, text, protection):
            continue
        text, made = proposal.instructions, made + 1
        if not stand_in_order(case.literals, text):
            lost.append(text)
    return lost, made


def stand_in_order(literals: list[str], text: str) -> bool:
    """Whether each text stands after the one before, and no number or name has grown."""
    place = 0
    for one in literals:
        before = r"(?<!\d)(?<!\d[.,])" if one[:1].isdigit() else ""
        after = (
            r"(?![A-Za-z0-9_])"
            if one[:1].isdigit() and one.isascii() and one[-1:].isalpha()
            else ""
        )
        match = re.compile(f"{before}{re.escape(one)}{after}").search(text, place)
        if match is None:
            return False
        place = match.end()
    return True


# Leaks

NAMES = ("Tilda Vexborough", "Ansgar Quillfeather", "Mireille Dubrovsky")
PHRASE = ("velvet", "harpoon", "gently", "orbits", "marzipan", "lanterns")
SHAPES = {
    "name": lambda rng: rng.choice(NAMES),
    "mail": lambda rng: f"{rng.choice('jkm')}.vex{rng.randrange(99)}@brinsmail.org",
    "number": lambda rng: f"+49 170 {rng.randrange(1000, 9999)} {rng.randrange(100, 999)}",
    "code": lambda rng: f"kestrel{rng.randrange(16**5):05x}7",
    "phrase": lambda rng: " ".join(rng.sample(PHRASE, 6)),
    "value": lambda rng: f"{rng.choice(PHRASE)}{rng.choice(PHRASE)}",
}
PLACES = ("input", "output", "nested input", "nested output", "demo's input", "demo's output")
TEXTS = ("it was late", "", "the box was open", "we like the new one")
COLOURS = ("red", "blue", "green", "pink")
TASK = "Name the one that fits best and no other thing"
# What a denoiser makes of the canary and of the sentence that it stands in.
TRICKS = {
    "verbatim": lambda canary, said, rng: canary,
    "case": lambda canary, said, rng: rng.choice(
        [canary.upper(), canary.lower(), canary.swapcase()]
    ),
    "split": lambda canary, said, rng: rng.choice([" ", "-", ". "]).join(_halves(canary, rng)),
    "slip": lambda canary, said, rng: _with_slip(canary, rng),
    "first half": lambda canary, said, rng: _halves(canary, random.Random(0))[0],
    "other half": lambda canary, said, rng: _halves(canary, random.Random(0))[1],
    "some words": lambda canary, said, rng: " ".join(_some_words(said, rng)),
    "some words, slip": lambda canary, said, rng: _with_slip(" ".join(_some_words(said, rng)), rng),
    "some letters": lambda canary, said, rng: _some_letters(said, rng),
}


@dataclass
class LeakyDenoiser(WordDenoiser):
    """Puts the canary, a disguise of it or words of its sentence among those that it fills in."""

    canary: str = ""
    said: str = ""
    tricks: list[str] = field(default_factory=list)

    def infill(self, requests, sampling):
        results = super().infill(requests, sampling)
        for number, (request, result) in enumerate(zip(requests, results, strict=True)):
            rng = random.Random(request.seed)
            if rng.random() < 0.3:  # an honest proposal
                continue
            trick = rng.choice(list(TRICKS))
            self.tricks.append(trick)
            token = " " + TRICKS[trick](self.canary, self.said, rng)
            masks = [k for k, one in enumerate(request.input_ids) if one == self.mask_id]
            ids = list(result.input_ids)
            ids[rng.choice(masks)] = self.vocabulary.setdefault(token, len(self.vocabulary))
            results[number] = type(result)(tuple(ids), 0.5, 1)
        return results


class KeepAll:
    """Accepts every trial, so that whatever passes the filter adds up."""

    def accepts(self, new, best, gain) -> bool:
        return True

    def journal_identity(self):
        return "keep all"


@dataclass(frozen=True)
class Planted:
    """A canary in a sentence of one row or demo, in a task of several."""

    canary: str
    shape: str
    said: str
    student: dspy.Module
    rows: list[dspy.Example]

    @classmethod
    def at(cls, place: str, rng: random.Random) -> "Planted":
        shape = rng.choice(list(SHAPES))
        canary = SHAPES[shape](rng)
        said = canary if shape == "value" else f"the order of last week came from {canary} by post"
        planted = (
            {"pages": [{"text": said}, {"text": "and no more"}]} if "nested" in place else said
        )
        texts, colours = [*TEXTS], [*COLOURS]
        (texts if "input" in place else colours)[1] = planted
        rows = [
            dspy.Example(text=text, colour=colour).with_inputs("text")
            for text, colour in zip(texts, colours, strict=True)
        ]
        student = dspy.Predict(_signature(place))
        if "demo" in place:
            student.demos = [rows.pop(1).copy()]
        return cls(canary, shape, said, student, rows)

    def comes_out_in(self, text: str) -> bool:
        """Whether a text holds the canary or as much of its sentence as is refused."""
        parts = self.canary.split() if self.shape == "name" else []
        return (
            has_canary(self.canary, text)
            or any(re.search(rf"\b{part}\b", text, re.IGNORECASE) for part in parts)
            or has_words_in_a_row(self.said, text)
            or has_letters_in_a_row(self.said, text)
        )


def leaks_of_a_compile(
    seed: int, place: str | None = None, **options
) -> tuple[list[str], int, set[str]]:
    """Plants a canary in a row or in a demo of the student, and compiles.

    Returns the instructions of trials and result that hold it, or a part of its sentence that the
    guard promises to refuse, how many were tried, and the tricks.
    """
    rng = random.Random(seed)
    planted = Planted.at(place or rng.choice(PLACES), rng)
    denoiser = LeakyDenoiser(canary=planted.canary, said=planted.said)
    order = rng.choice([{"sweeps": 2}] * 2 + [{"order": "adaptive"}])
    settings = {"num_proposals": 4, "max_metric_calls": 60, **order}
    with dspy.context(lm=rule_lm(lambda _: "no idea")[0], adapter=TemplateAdapter()):
        optimizer = DiffusionInfill(
            lambda example, prediction, trace=None: 0.0,
            denoiser,
            guidance=None,
            display_progress=False,
            num_threads=1,
            seed=seed,
            window=4,
            stride=2,
            mask=4,
            acceptance=KeepAll(),
            **{**settings, **options},
        )
        results = optimizer.compile(planted.student, planted.rows).detailed_results
    tried = [trial.instructions for trial in results.trials]
    tried += results.instructions_after.values()
    leaks = [text for text in tried if planted.comes_out_in(text)]
    return leaks, len(tried), set(denoiser.tricks)


def has_canary(canary: str, text: str) -> bool:
    """Whether a text holds it, whatever the case and spaces, with at most one letter changed."""
    wanted, letters = _letters(canary), _letters(text)
    sizes = range(len(wanted) - 1, len(wanted) + 2)
    return any(
        Levenshtein.distance(wanted, letters[start : start + size], score_cutoff=1) <= 1
        for size in sizes
        for start in range(len(letters) - size + 1)
    )


def has_words_in_a_row(said: str, text: str) -> bool:
    """Whether four words of a sentence stand in a text in a row, long ones with a slip or not."""
    wanted, words = (re.findall(r"\w+", one.lower()) for one in (said, text))
    return any(
        all(
            a == b or (len(b) >= 5 and Levenshtein.normalized_similarity(a, b) >= 0.8)
            for a, b in zip(wanted[k : k + 4], words[n : n + 4], strict=True)
        )
        for k in range(len(wanted) - 3)
        for n in range(len(words) - 3)
    )


def has_letters_in_a_row(said: str, text: str) -> bool:
    """Whether twenty letters of a sentence stand in a text in a row, whatever the spaces."""
    wanted, letters = _letters(said), _letters(text)
    return any(wanted[k : k + 20] in letters for k in range(len(wanted) - 19))


def _signature(place: str) -> type[dspy.Signature]:
    kinds = {"nested input": ("dict | str", "str"), "nested output": ("str", "dict | str")}
    text, colour = kinds.get(place, ("str", "str"))
    return dspy.Signature(f"text: {text} -> colour: {colour}", TASK)


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text.lower())


def _some_words(text: str, rng: random.Random) -> list[str]:
    """Four to six words in a row, or all that there are."""
    words = text.split()
    num = rng.randint(4, 6)
    start = rng.randrange(max(1, len(words) - num + 1))
    return words[start : start + num]


def _some_letters(text: str, rng: random.Random) -> str:
    """Twenty to thirty letters in a row with spaces at random, or all that there are."""
    letters, num = _letters(text), rng.randint(20, 30)
    start = rng.randrange(max(1, len(letters) - num + 1))
    return "".join(one + rng.choice(["", "", "", " "]) for one in letters[start : start + num])


def _halves(text: str, rng: random.Random) -> tuple[str, str]:
    middle = rng.randrange(len(text) // 3, 2 * len(text) // 3 + 1)
    return text[:middle], text[middle:]


def _with_slip(text: str, rng: random.Random) -> str:
    places = [k for k, one in enumerate(text) if one.isalnum()]
    place = rng.choice(places)
    other = "7" if text[place].isdigit() and text[place] != "7" else "q"
    return rng.choice([text[:place] + text[place + 1 :], text[:place] + other + text[place + 1 :]])
