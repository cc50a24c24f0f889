"""The small reproduction: its world, its training texts, and its exam."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from dspy_diffusion_infill.denoisers import Encoding, Infilled
from dspy_diffusion_infill.reproduction.mini import training, world
from dspy_diffusion_infill.reproduction.mini.measures import draw_exam, measure
from dspy_diffusion_infill.reproduction.mini.recipe import SCALES, STAGES

SEEDS = st.integers(0, 10_000)
TINY = replace(SCALES["smoke"], width=16, layers=1, pretraining_tokens=4096, stage_tokens=4096)


def generator(seed=0):
    return Generator().manual_seed(seed)


def respond(instruction, words):
    """The world's rule in plain Python: an instruction's response to an input, both as words."""
    first, second, language, tone = instruction
    column = world.LANGUAGES.index(language)
    said = []
    for field in (first, second):
        entries = [entry.split() for entry in world.WORDS[field]]
        said += [entry[column] for entry in entries if entry[0] in words]
    return [*said, world.TONES[tone]]


def parse(text):
    """(instruction, [(input, response), ...]) of a context's text."""
    start, *rest = text.split()
    assert start == world.START
    instruction, *examples = " ".join(rest).split(f" {world.STOP}")
    pairs = [example.split(f" {world.ARROW} ") for example in examples if example.strip()]
    return instruction.split(), [(q.split(), a.split()) for q, a in pairs]


EVERY = [world.text(ids[:-1]).split() for ids in world.instruction_ids(world.instructions())]


# The world


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 3))
def test_every_response_follows_from_its_instruction(seed, num_examples):
    chosen = world.draw(world.instructions(), 8, generator(seed))
    for ids in world.context_ids(chosen, num_examples, generator(seed)):
        instruction, examples = parse(world.text(ids))
        assert len(examples) == num_examples
        for words, response in examples:
            assert response == respond(instruction, words)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_one_example_tells_the_whole_instruction(seed):
    chosen = world.draw(world.instructions(), 1, generator(seed))
    context = world.context_ids(chosen, 1, generator(seed))
    instruction, [(words, response)] = parse(world.text(context[0]))
    assert [each for each in EVERY if respond(each, words) == response] == [instruction]


def test_the_vocabulary_is_small_and_no_word_stands_for_two():
    assert len(world.ID) == len(world.VOCABULARY) < 100


def test_the_places_of_responses_are_what_follows_the_arrows():
    ids = world.context_ids(world.instructions()[:1], 3, generator())[0]
    responses = world.text(ids[world.response_places(len(ids))]).split()
    assert responses == [word for _, answer in parse(world.text(ids))[1] for word in answer]


def test_the_tokenizer_gives_the_ids_that_the_world_writes():
    ids = world.context_ids(world.instructions()[5:6], 2, generator())[0]
    assert world.tokenizer()(world.text(ids))["input_ids"] == ids.tolist()


def test_the_chat_template_gives_contexts_as_in_training():
    ids = world.context_ids(world.instructions()[5:6], 1, generator())[0]
    prompt, response = ids[1:-4], ids[-4:-1]
    turns = [("user", prompt), ("assistant", response)]
    messages = [{"role": role, "content": world.text(part)} for role, part in turns]
    rendered = world.tokenizer().apply_chat_template(messages, tokenize=False)
    assert rendered == world.text(ids)


# Training texts


def test_unseen_instructions_are_in_no_training_text():
    seen, unseen = world.split(generator())
    assert {*map(tuple, seen.tolist())} | {*map(tuple, unseen.tolist())} == {
        *map(tuple, world.instructions().tolist())
    }
    secret = {world.text(ids) for ids in world.instruction_ids(unseen)}
    for k in range(20):
        for draw in (training.pretraining_texts, training.contexts):
            for ids in draw(seen, TINY, generator(k)):
                assert not any(instruction in world.text(ids) for instruction in secret)


def test_in_pretraining_instructions_and_examples_never_meet():
    kinds = set()
    for k in range(20):
        for ids in training.pretraining_texts(world.instructions(), TINY, generator(k)):
            words = set(world.text(ids).split())
            has_instructions, has_examples = bool(words & {*world.FIELDS}), world.ARROW in words
            assert has_instructions != has_examples
            kinds.add(has_examples)
    assert kinds == {True, False}


def test_they_meet_in_the_share_that_is_asked_for():
    scale = replace(TINY, met=1.0)
    for ids in training.pretraining_texts(world.instructions(), scale, generator()):
        assert {world.ARROW} < set(world.text(ids).split()) & {world.ARROW, *world.FIELDS}


def test_the_model_sees_what_follows_a_token():
    model = training.new_model(TINY, 0)
    ids = world.context_ids(world.instructions()[:2], 1, generator())  # differ in the tone
    first = int((ids[0] != ids[1]).nonzero()[0])
    logits = model(input_ids=ids).logits[:, first - 1]
    assert not torch.allclose(logits[0], logits[1])


def test_stages_have_equal_budgets():
    for stage, parts in STAGES.items():
        total = sum(part.tokens for part in parts)
        assert total == pytest.approx(0.0 if stage == "None" else 1.0)


def test_ro_is_gentle_where_fs_came_before_it_and_nowhere_else():
    rates = {(stage, part.masking): part.rate for stage, parts in STAGES.items() for part in parts}
    assert rates == {("RO", "RO"): 1, ("FS", "FS"): 1, ("FS+RO", "FS"): 1, ("FS+RO", "RO"): 0.1}


def test_each_part_of_a_stage_has_its_masking_tokens_and_rate(monkeypatch):
    trained = []
    monkeypatch.setattr(
        training,
        "_train",
        lambda model, texts, masking, num_tokens, *, learning_rate, **_: trained.append(
            (masking, num_tokens, learning_rate)
        ),
    )
    model, scale = training.new_model(TINY, 0), replace(TINY, stage_tokens=900, learning_rate=0.5)
    training.fine_tune(model, world.instructions(), "FS+RO", scale=scale, seed=0, log=False)
    assert trained == [("FS", 600, 0.5), ("RO", 300, 0.05)]


# The exam


class Oracle:
    """Knows the world; of the instructions it infills, every ``fault``-th has a wrong tone."""

    name = "oracle"
    mask_id = world.ID[world.MASK]
    context_length = training.CONTEXT_LENGTH
    num_passes = 0

    def __init__(self, *, fault=1_000_000):
        self.fault, self.tokenizer = fault, world.tokenizer()

    def encode(self, text):
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        return Encoding(tuple(encoded["input_ids"]), tuple(encoded["offset_mapping"]))

    def decode(self, input_ids):
        return world.text(torch.tensor(input_ids))

    def render(self, messages):
        return " ".join([world.START, *(message["content"] for message in messages)])

    def infill(self, requests, sampling):
        texts = [world.text(torch.as_tensor(request.input_ids)) for request in requests]
        solved = [self._solved(text, number) for number, text in enumerate(texts, start=1)]
        return [Infilled(tuple(world.ID[word] for word in words), 1.0, 1) for words in solved]

    def _solved(self, text, number):
        instruction, examples = parse(text)
        if world.MASK in instruction:
            words, response = examples[0]
            [instruction] = [each for each in EVERY if respond(each, words) == response]
            if number % self.fault == 0:
                instruction = [*instruction[:3], "glad" if instruction[3] == "calm" else "calm"]
        solved = [world.START, *instruction, world.STOP]
        for words, response in examples:
            answer = respond(instruction, words) if world.MASK in response else response
            solved += [*words, world.ARROW, *answer, world.STOP]
        return solved

    def score(self, requests):
        return [tuple(math.log(0.5) for _ in request.targets) for request in requests]


def exam(num_contexts=12):
    _, unseen = world.split(generator())
    return draw_exam(unseen, num_contexts, 2, generator())


def test_a_denoiser_that_knows_the_world_has_full_marks():
    result = measure(Oracle(), exam(), stage="FS", seed=0)
    assert result.infill_exact_match == result.downstream_accuracy == result.told_accuracy == 1.0


def test_a_wrong_instruction_costs_its_match_and_its_response_but_not_the_told_one():
    result = measure(Oracle(fault=3), exam(), stage="FS", seed=0)
    assert result.infill_exact_match == result.downstream_accuracy == pytest.approx(2 / 3)
    assert result.told_accuracy == 1.0


def test_a_coins_throw_for_each_token_is_a_perplexity_of_two():
    assert measure(Oracle(), exam(100), stage="FS", seed=0).perplexity == pytest.approx(
        2.0, rel=0.05
    )


def test_every_unseen_instruction_is_examined():
    _, unseen = world.split(generator())
    contexts = draw_exam(unseen, 2 * len(unseen), 2, generator()).contexts
    examined = [tuple(ids) for ids in contexts[:, world.INSTRUCTION].tolist()]
    assert {examined.count(each) for each in examined} == {2}
    assert len({*examined}) == len(unseen)
