"""A synthetic task in which an instruction decides how inputs map to responses.

An input is four words: an animal, a color, a fruit and a number, in any order. An instruction is
four words: which two of these to say, in which order, in which language, and in which tone. So

    fruit color french glad ; three cat pear red => poire rouge ! ;

A *context* is an instruction and worked examples of it, as the optimizer shows them to a denoiser.
One example is enough to tell all four words of its instruction.
"""

from functools import cache
from itertools import permutations, product

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Generator, Tensor
from transformers import PreTrainedTokenizerFast

FIELDS = ("animal", "color", "fruit", "number")
LANGUAGES = ("english", "french", "german")
TONES = {"calm": ".", "glad": "!", "unsure": "?", "dreamy": "..."}
WORDS = {
    "animal": ("cat chat Katze", "dog chien Hund", "horse cheval Pferd", "bird oiseau Vogel"),
    "color": ("red rouge rot", "green vert grün", "blue bleu blau", "white blanc weiß"),
    "fruit": (
        "apple pomme Apfel",
        "pear poire Birne",
        "cherry cerise Kirsche",
        "grape raisin Traube",
    ),
    "number": ("one un eins", "two deux zwei", "three trois drei", "four quatre vier"),
}
PAD, MASK, START, ARROW, STOP = "[PAD]", "[MASK]", "[START]", "=>", ";"
VOCABULARY = (
    *(PAD, MASK, START, ARROW, STOP),
    *(*FIELDS, *LANGUAGES, *TONES, *TONES.values()),
    *(word for field in FIELDS for entry in WORDS[field] for word in entry.split()),
)
ID = {token: index for index, token in enumerate(VOCABULARY)}

INSTRUCTION_LENGTH = 4
INPUT_LENGTH = len(FIELDS)
RESPONSE_LENGTH = 3
EXAMPLE_LENGTH = (
    INPUT_LENGTH + 1 + RESPONSE_LENGTH + 1
)  # "=>" after the input, ";" after the response
INSTRUCTION = slice(1, 1 + INSTRUCTION_LENGTH)
"""The place of a context's instruction: after [START]."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m['content'] }}"
    "{{ ' ;' if m['role'] == 'assistant' }}{% endfor %}"
)


@cache
def instructions() -> Int[Tensor, "instructions 4"]:
    """All 144 instructions, as places in (FIELDS, FIELDS, LANGUAGES, TONES)."""
    pairs = permutations(range(len(FIELDS)), 2)
    rest = product(range(len(LANGUAGES)), range(len(TONES)))
    return torch.tensor([(*fields, *others) for fields, others in product(pairs, list(rest))])


def split(
    generator: Generator, *, held_out: float = 0.2
) -> tuple[Int[Tensor, "seen 4"], Int[Tensor, "unseen 4"]]:
    """(instructions for training, instructions that no training text holds), at random."""
    every = instructions()[torch.randperm(len(instructions()), generator=generator)]
    num_unseen = round(held_out * len(every))
    return every[num_unseen:], every[:num_unseen]


def draw(
    pool: Int[Tensor, "instructions 4"], count: int, generator: Generator
) -> Int[Tensor, "count 4"]:
    """``count`` instructions of the pool, with replacement."""
    return pool[torch.randint(len(pool), (count,), generator=generator)]


def instruction_ids(chosen: Int[Tensor, "batch 4"]) -> Int[Tensor, "batch 5"]:
    """The instructions' tokens, ";" included."""
    first = torch.tensor([ID[FIELDS[0]], ID[FIELDS[0]], ID[LANGUAGES[0]], ID["calm"]])
    return torch.cat([chosen + first, torch.full((len(chosen), 1), ID[STOP])], dim=1)


def example_ids(
    chosen: Int[Tensor, "batch 4"], num_examples: int, generator: Generator
) -> Int[Tensor, "batch length"]:
    """Worked examples of each instruction, on random inputs."""
    shape = (len(chosen), num_examples)
    # 1. A word of each field, and the order in which the input says them.
    words = torch.randint(len(WORDS["animal"]), (*shape, len(FIELDS)), generator=generator)
    order = torch.rand(*shape, len(FIELDS), generator=generator).argsort(-1)
    inputs = _word_id(torch.arange(len(FIELDS)), words, torch.tensor(0)).gather(-1, order)
    # 2. The response: two of the words in the instruction's language, and the mark of its tone.
    fields = chosen[:, None, :2].expand(*shape, 2)
    said = _word_id(fields, words.gather(-1, fields), chosen[:, None, 2:3])
    mark = (chosen[:, 3] + ID[TONES["calm"]])[:, None, None].expand(*shape, 1)
    # 3. In a row.
    arrow, stop = (torch.full((*shape, 1), ID[token]) for token in (ARROW, STOP))
    return torch.cat([inputs, arrow, said, mark, stop], dim=-1).flatten(1)


def _word_id(field: Tensor, word: Tensor, language: Tensor) -> Tensor:
    return ID["cat"] + (field * len(WORDS["animal"]) + word) * len(LANGUAGES) + language


def context_ids(
    chosen: Int[Tensor, "batch 4"], num_examples: int, generator: Generator
) -> Int[Tensor, "batch length"]:
    """An instruction and worked examples of it: what fine-tuning sees."""
    return with_start(instruction_ids(chosen), example_ids(chosen, num_examples, generator))


def with_start(*parts: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """The parts, one after the other, after [START]."""
    return torch.cat([torch.full((len(parts[0]), 1), ID[START]), *parts], dim=1)


def response_places(length: int) -> Bool[Tensor, " length"]:
    """True at the responses of a context of ``length`` tokens."""
    is_response = torch.zeros(length, dtype=torch.bool)
    for example in range(INSTRUCTION.stop + 1, length, EXAMPLE_LENGTH):
        start = example + INPUT_LENGTH + 1
        is_response[start : start + RESPONSE_LENGTH] = True
    return is_response


def text(ids: Int[Tensor, " length"]) -> str:
    """The tokens' words, a blank between them."""
    return " ".join(VOCABULARY[index] for index in ids.tolist())


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; its chat template puts [START] in front and ";" after a response."""
    words = Tokenizer(WordLevel(ID, unk_token=PAD))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        mask_token=MASK,
        bos_token=START,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
