"""The small reproduction: its world, its exam, its figures, and a run from nothing."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Generator

from dspy_diffusion_infill.denoisers import Encoding, Infilled
from dspy_diffusion_infill.errors import MissingDependencyError
from dspy_diffusion_infill.reproduction.mini import MiniRow, run_mini, training, world
from dspy_diffusion_infill.reproduction.mini.measures import draw_exam, measure
from dspy_diffusion_infill.reproduction.mini.recipe import SCALES, STAGES
from dspy_diffusion_infill.reproduction.mini.summary import (
    COLUMNS,
    markdown,
    mean_over_seeds,
    verdicts,
    wilson,
)

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


# The figures


def rows_of(values, *, stage="FS", field="infill_exact_match", num_contexts=100):
    zero = dict.fromkeys(("infill_exact_match", "downstream_accuracy", "told_accuracy"), 0.0)
    return [
        MiniRow(
            stage=stage,
            seed=k,
            num_contexts=num_contexts,
            **{**zero, "perplexity": 2.0, field: value},
        )
        for k, value in enumerate(values)
    ]


def all_stages(*, response_only, full, both):
    values = {"None": [0.0] * 3, "RO": response_only, "FS": full, "FS+RO": both}
    return [row for stage in STAGES for row in rows_of(values[stage], stage=stage)]


def test_the_interval_of_perplexity_is_students_over_seeds():
    values, column = [3.0, 4.0, 5.5], COLUMNS[2]
    result = mean_over_seeds(rows_of(values, field="perplexity"), "FS", column)
    reach = 4.302652729749464 * statistics.stdev(values) / math.sqrt(3)  # t table, 2 degrees, 0.975
    assert result.mean == pytest.approx(12.5 / 3)
    assert result.std == pytest.approx(statistics.stdev(values))
    assert result.low == pytest.approx(max(1.0, 12.5 / 3 - reach))
    assert result.high == pytest.approx(12.5 / 3 + reach)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_share_is_wilsons(counts):
    hits, count = counts
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_seeds_that_agree_still_leave_an_interval():
    result = mean_over_seeds(rows_of([0.0, 0.0, 0.0]), "FS", COLUMNS[0])
    assert (result.mean, result.std, result.low) == (0, 0, 0)
    assert 0.01 < result.high < 0.02  # 0 of 300


def test_one_seed_has_an_interval_but_no_deviation():
    result = mean_over_seeds(rows_of([0.5]), "FS", COLUMNS[0])
    assert math.isnan(result.std) and result.low < 0.5 < result.high


def test_the_verdict_is_said_either_way():
    good = all_stages(response_only=[0.1] * 3, full=[0.9] * 3, both=[0.2, 0, 0.1])
    fs, fs_ro = verdicts(good)
    assert "(9.0 times)" in fs and "lie apart" in fs
    assert "(1.0 times)" in fs_ro and "do not lie apart" in fs_ro


def test_no_ratio_is_said_where_response_only_has_nothing():
    rows = all_stages(response_only=[0] * 3, full=[1] * 3, both=[1] * 3)
    assert all("no ratio to 0" in line and "lie apart" in line for line in verdicts(rows))


def test_the_markdown_table_has_a_line_for_each_stage():
    rows = all_stages(response_only=[0] * 3, full=[1] * 3, both=[1] * 3)
    lines = [line for line in markdown(rows).splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines] == ["stage", "---", *STAGES]
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 2}


# A run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    rows = run_mini(
        seeds=1, output=folder / "out", json=folder / "rows.json", display=False, scale=TINY
    )
    return folder, rows


def test_a_run_gives_a_row_for_each_stage_with_figures_in_range(smoke):
    _, rows = smoke
    assert [row.stage for row in rows] == list(STAGES)
    for row in rows:
        for share in (row.infill_exact_match, row.downstream_accuracy, row.told_accuracy):
            assert 0.0 <= share <= 1.0
        assert 1.0 < row.perplexity < math.inf


def test_the_json_file_holds_what_is_compared_and_nothing_else(smoke):
    folder, rows = smoke
    written = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    keys = ["stage", "seed", "infill_exact_match", "downstream_accuracy", "perplexity"]
    assert [list(row) for row in written] == [keys] * len(rows)
    assert [row["perplexity"] for row in written] == [row.perplexity for row in rows]


def test_the_output_folder_holds_table_and_plots(smoke):
    folder, rows = smoke
    assert (folder / "out" / "mini.md").read_text(encoding="utf-8") == markdown(rows)
    assert (folder / "out" / "mini.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "out" / "mini.svg").read_text(encoding="utf-8")


def test_the_same_seed_gives_the_same_rows(smoke):
    _, rows = smoke
    assert run_mini(seeds=1, display=False, scale=TINY) == rows


def weights_of(model):
    return {name: weights.detach().clone() for name, weights in model.named_parameters()}


def test_fine_tuning_starts_from_the_same_weights_and_moves_them(monkeypatch):
    fine_tune, before, after = training.fine_tune, {}, {}

    def watched(model, seen, stage, **options):
        before[stage] = weights_of(model)
        fine_tune(model, seen, stage, **options)
        after[stage] = weights_of(model)

    monkeypatch.setattr(training, "fine_tune", watched)
    run_mini(seeds=1, display=False, scale=replace(TINY, num_contexts=2))
    assert list(before) == list(STAGES)
    for stage, weights in before.items():
        for name, start in before["None"].items():
            assert torch.equal(weights[name], start)
            assert torch.equal(after[stage][name], start) == (stage == "None"), (stage, name)


def test_each_masking_of_a_stage_has_an_optimizer_and_a_schedule_of_its_own(monkeypatch):
    """As each stage of a recipe; the rate of what comes second has a peak of its own."""
    step, rates, optimizers_of = training._step, {}, {}

    def watched(model, optimizers, x0, masking, generator):
        rates.setdefault(masking, []).append(optimizers[0].param_groups[0]["lr"])
        optimizers_of.setdefault(masking, optimizers)
        assert optimizers_of[masking] is optimizers
        return step(model, optimizers, x0, masking, generator)

    monkeypatch.setattr(training, "_step", watched)
    scale = replace(TINY, stage_tokens=192 * 128, batch_tokens=128)
    seen, _ = world.split(generator())
    training.fine_tune(training.new_model(scale, 0), seen, "FS+RO", scale=scale, seed=0, log=False)
    assert optimizers_of["FS"] is not optimizers_of["RO"]
    for part in STAGES["FS+RO"]:
        learned, peak = rates[part.masking], part.rate * scale.learning_rate
        assert learned[0] < 0.1 * peak
        assert 0.95 * peak < max(learned) <= peak
        assert learned[-1] < 0.01 * peak
    assert len(rates["FS"]) == pytest.approx(2 * len(rates["RO"]), rel=0.1)


def test_without_matplotlib_rows_and_table_are_kept_and_a_line_says_that_plots_are_not(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("dspy_diffusion_infill.reproduction.mini.run.find_spec", lambda name: None)
    run_mini(
        seeds=1,
        output=tmp_path / "out",
        json=tmp_path / "rows.json",
        display=False,
        scale=replace(TINY, num_contexts=2),
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mini.md"]
    assert len(json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))) == len(STAGES)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("plots need matplotlib: pip install")


def test_without_matplotlib_and_without_json_it_says_so_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("dspy_diffusion_infill.reproduction.mini.run.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="plots need matplotlib"):
        run_mini(output=tmp_path / "out")


def test_a_run_prints_progress_and_table(capfd):
    run_mini(seeds=1, scale=replace(TINY, num_contexts=2))
    out, err = capfd.readouterr()
    assert "downstream" in out and all(stage in out for stage in STAGES)
    assert "seed 0 · pretraining" in err and "seed 0 · FS+RO · RO" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"scale": "huge"}, "scale must be one of full"),
        ({"scale": "smoke", "json": Path()}, "json must be a file, got the folder"),
    ],
)
def test_wrong_options_are_said_before_anything_starts(options, message):
    with pytest.raises(ValueError, match=message):
        run_mini(**options)


@pytest.mark.slow
def test_seeds_in_processes_of_their_own_give_the_rows_that_they_give_here(smoke):
    _, rows = smoke
    assert run_mini(seeds=2, display=False, scale=TINY)[: len(rows)] == rows
