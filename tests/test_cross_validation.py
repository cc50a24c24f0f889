"""Every row is held out once, folds share a budget, and the best program of all is the result."""

import asyncio
import re
import time
from dataclasses import replace

import dspy
import pytest
from doubles import RuleEngine, WordDenoiser, rule_lm
from dspy.lm15 import Usage
from test_diffusion_infill import TASK, answer_if_told_briefly, program

from dspy_diffusion_infill.lms.engines import AsyncInThread
from dspy_diffusion_infill.optimizer import diffusion_infill
from dspy_diffusion_infill.optimizer.callbacks import RunEvent, SearchCallback
from dspy_diffusion_infill.optimizer.cross_validation import CrossValidation, FoldScores
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.programs import copy_program, instructions_of
from dspy_diffusion_infill.template_adapter import TemplateAdapter

COLOURS = ["red", "blue", "green", "grey", "pink", "black", "white"]
ROWS = [
    dspy.Example(text=f"number {number} is {colour}", colour=colour).with_inputs("text")
    for number, colour in enumerate(COLOURS)
]


UNLABELLED = dspy.Example(text="it", other="red").with_inputs("text")


def optimizer(denoiser=None, **options) -> DiffusionInfill:
    quiet = {"guidance": None, "num_threads": 1, "display_progress": False, "seed": 2}
    return DiffusionInfill(None, denoiser or WordDenoiser(), **{**quiet, **options})


def validated(rule=answer_if_told_briefly, *, folds=3, rows=ROWS, lm=None, **options):
    with dspy.context(lm=lm or rule_lm(rule)[0], adapter=TemplateAdapter()):
        return CrossValidation(optimizer(**options), folds=folds).compile(program(), rows)


def outcome(program: dspy.Module) -> FoldScores:
    """Without the denoiser's passes, which a search that is resumed leaves out."""
    found = program.fold_scores
    return replace(found, folds=tuple(replace(one, denoiser_passes=0) for one in found.folds))


def test_every_row_is_held_out_once_and_not_seen_before():
    lm, engine = rule_lm(answer_if_told_briefly)
    denoiser = WordDenoiser()
    better = validated(lm=lm, denoiser=denoiser, max_metric_calls=180)
    scores = better.fold_scores
    assert [one.num_holdout for one in scores.folds] == [3, 2, 2]
    assert [len(one.scores_after) for one in scores.folds] == [4, 5, 5]
    assert len(scores.scores_before) == len(scores.scores_after) == len(ROWS)
    texts = [re.findall(r"number (\d)", prompt)[-1] for prompt in engine.prompts]
    held, start = [], 0
    for one in scores.folds:
        asked = texts[start : start + one.metric_calls]
        start += one.metric_calls
        runs = one.num_holdout * (2 if one.counts.accepted else 1)
        held.append(set(asked[-runs:]))
        assert not held[-1] & set(asked[:-runs])
    assert sorted(number for one in held for number in one) == sorted(map(str, range(7)))
    assert start == len(texts) == better.total_calls


def test_the_gain_is_that_on_rows_which_a_search_did_not_see():
    def right_if_asked_for_a_word(prompt: str) -> str:
        asked_for = re.search(r"\b(?:only|word)\b", prompt)
        return re.findall(r"is (\w+)", prompt)[-1] if asked_for else "no idea"

    scores = validated(right_if_asked_for_a_word, max_metric_calls=240).fold_scores
    told = [bool(re.search("only|word", one.instructions_after["self"])) for one in scores.folds]
    assert any(told) and scores.scores_before == (0.0,) * 7
    sizes = [one.num_holdout for one in scores.folds]
    expected = [float(is_told) for is_told, n in zip(told, sizes, strict=True) for _ in range(n)]
    assert list(scores.scores_after) == expected
    assert scores.gain == pytest.approx(sum(expected) / 7)
    assert scores.p_value < 0.1
    assert f"{100 * scores.gain:+.1f} points on 7 rows that were not seen" in str(scores)


def test_the_result_is_the_fold_with_the_highest_mean_over_all_rows():
    better = validated(max_metric_calls=240)
    scores = better.fold_scores
    means = [
        (sum(one.scores_after) + sum(one.holdout_scores_after)) / len(ROWS) for one in scores.folds
    ]
    assert scores.chosen == means.index(max(means))
    chosen = scores.folds[scores.chosen]
    assert instructions_of(better) == chosen.instructions_after
    assert better.detailed_results == chosen


def test_a_student_that_no_fold_improves_is_the_result():
    better = validated(lambda prompt: "no idea", max_metric_calls=100)
    assert better.fold_scores.chosen is None and better.fold_scores.gain == 0.0
    assert instructions_of(better) == {"self": TASK} and not hasattr(better, "detailed_results")


@pytest.mark.parametrize("caps", [{"max_metric_calls": 150}, {"auto": "light"}, {}])
def test_the_caps_are_for_all_folds_together(caps):
    better = validated(**caps)
    most = caps.get("max_metric_calls", 20 * len(ROWS))
    assert most - 3 * len(ROWS) < better.total_calls <= most


class WordyEngine(RuleEngine):
    """Each call takes so many tokens by its usage, whatever was foreseen."""

    num_tokens = 50

    def complete(self, request):
        usage = Usage(input_tokens=self.num_tokens, output_tokens=0, total_tokens=self.num_tokens)
        return replace(super().complete(request), usage=usage)


def wordy_lm(rule=answer_if_told_briefly) -> tuple[dspy.LM, WordyEngine]:
    engine = WordyEngine(rule)
    wrapped = AsyncInThread(engine)
    lm = dspy.LM("test/rule", engine=engine, async_engine=wrapped, cache=False, max_tokens=20)
    return lm, engine


@pytest.mark.parametrize("caps", [{"max_lm_tokens": 4000}, {"max_cost": 0.004}])
def test_tokens_and_money_are_for_all_folds_together(caps):
    lm, _ = wordy_lm()
    folds = validated(lm=lm, prices={"test/rule": (1.0, 1.0)}, **caps).fold_scores.folds
    assert {one.end_reason for one in folds} == set(caps) and len(folds) == 3
    assert 3000 < sum(one.lm_tokens for one in folds) <= 4000


def test_folds_that_a_cap_does_not_cover_any_more_are_left_out(caplog):
    def loquacious_in_the_end(prompt: str) -> str:
        engine.num_tokens = 3000 if len(engine.prompts) == 12 else 10
        return answer_if_told_briefly(prompt)

    lm, engine = wordy_lm(loquacious_in_the_end)
    better = validated(lm=lm, max_lm_tokens=3000)
    assert len(better.fold_scores.folds) == 1 and better.fold_scores.folds[0].lm_tokens >= 3000
    assert "fold 2 of 3 is the first that is left out: max_lm_tokens=0" in caplog.text


class SlowToLoad(WordDenoiser):
    loads = 0

    def __init__(self, name: str | None) -> None:
        super().__init__(name=f"{name} of a hub")
        SlowToLoad.loads += 1
        time.sleep(0.5)


def test_a_denoiser_is_loaded_once_within_the_time_and_is_known_by_its_name(monkeypatch):
    monkeypatch.setattr(diffusion_infill, "load_denoiser", SlowToLoad)
    seconds: list[float | None] = []

    class Noting(SearchCallback):
        def on_run(self, event: RunEvent) -> None:
            seconds.append(event.max_seconds)

    one = CrossValidation(
        optimizer("slow", max_metric_calls=60, max_seconds=60, callbacks=[Noting()]), folds=3
    )
    with dspy.context(lm=rule_lm(answer_if_told_briefly)[0], adapter=TemplateAdapter()):
        better = one.compile(program(), ROWS)
        one.estimate(program(), ROWS)
    assert SlowToLoad.loads == 1
    assert seconds[0] is not None and seconds[0] <= (60 - 0.5) / 3
    options = better.fold_scores.folds[0].settings["options"]
    assert options["denoiser"] == "slow"


def test_each_row_may_be_a_fold_of_its_own():
    scores = validated(folds=7, max_metric_calls=200).fold_scores
    assert [one.num_holdout for one in scores.folds] == [1] * 7
    assert len(scores.scores_after) == 7


def test_a_bar_tells_which_fold_it_is_of_and_fits(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    validated(max_metric_calls=60, max_seconds=600, display_progress=True)
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    found = re.findall(r"(fold \d of 3) +\d+%\|.*?\d s left", "\n".join(lines))
    assert list(dict.fromkeys(found)) == ["fold 1 of 3", "fold 2 of 3", "fold 3 of 3"]
    # Without a terminal tqdm's bar itself has ten columns; there it has those that are left.
    assert max(len(line.rstrip()) for line in lines) <= 80 + 9
    validated(max_metric_calls=60)
    assert "fold" not in capsys.readouterr().err


class Awaited(dspy.Module):
    def __init__(self):
        super().__init__()
        self.name = program()

    async def aforward(self, text: str) -> dspy.Prediction:
        return await self.name.acall(text=text)


@pytest.mark.parametrize("rule", [answer_if_told_briefly, lambda prompt: "no idea"])
def test_a_program_that_can_only_be_awaited_stays_so(rule):
    one = CrossValidation(optimizer(max_metric_calls=120), folds=3)
    with dspy.context(lm=rule_lm(rule)[0], adapter=TemplateAdapter()):
        better = asyncio.run(one.acompile(Awaited(), ROWS))
        answer = asyncio.run(better.acall(text="number 1 is blue"))
    assert isinstance(better, Awaited) and "forward" not in vars(better)
    is_told = better.fold_scores.chosen is not None
    assert answer.colour == ("blue" if is_told else "no idea")
    assert is_told == (rule is answer_if_told_briefly)


def test_copies_of_a_result_leave_the_scores_of_its_folds_behind():
    better = validated(max_metric_calls=120)
    assert not hasattr(copy_program(better), "fold_scores")


def test_equal_seeds_give_equal_results_and_a_folder_is_gone_on_with(tmp_path):
    first = validated(max_metric_calls=120, log_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fold-1", "fold-2", "fold-3"]
    lm, engine = rule_lm(answer_if_told_briefly)
    again = validated(lm=lm, max_metric_calls=120, log_dir=tmp_path)
    assert engine.prompts == []
    whole = validated(max_metric_calls=120)
    assert outcome(again) == outcome(first) == outcome(whole)


def test_an_error_carries_the_best_program_of_the_folds_before_it():
    lm, engine = rule_lm(answer_if_told_briefly)
    most = validated(max_metric_calls=240).fold_scores.folds[0].metric_calls

    def breaks(prompt: str) -> str:
        if len(engine.prompts) > most + 10:
            raise KeyboardInterrupt
        return answer_if_told_briefly(prompt)

    lm, engine = rule_lm(breaks)
    with pytest.raises(KeyboardInterrupt) as caught:
        validated(lm=lm, max_metric_calls=240)
    scores = caught.value.best_program.fold_scores
    assert isinstance(scores, FoldScores) and len(scores.folds) == 2
    assert scores.chosen == 0 and caught.value.detailed_results == scores.folds[0]
    assert instructions_of(caught.value.best_program) != {"self": TASK}


def test_the_estimate_is_one_of_each_fold():
    with dspy.context(lm=rule_lm(answer_if_told_briefly)[0], adapter=TemplateAdapter()):
        one = CrossValidation(optimizer(max_metric_calls=120), folds=3)
        estimates = one.estimate(program(), ROWS)
    assert [estimate.metric_calls for estimate in estimates] == [40, 40, 40]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"folds": 8}, "folds=8 needs 8 rows or more, and the trainset has 7: give fewer folds"),
        ({"rows": ROWS[:2], "folds": 2}, "folds=2 needs 3 rows or more, .* has 2: give more rows"),
        ({"rows": [*ROWS, ROWS[2]]}, r"trainset\[2\] and trainset\[7\] are the same"),
        ({"folds": 1}, "folds must be .*, got folds=1"),
        ({"holdout": 0.25}, "a holdout of its own: leave it out"),
        ({"max_metric_calls": 20}, "3 folds share the caps, .* max_metric_calls=6 does not cover"),
        (
            {"rows": [ROWS[0], UNLABELLED, *ROWS[1:]]},
            r"trainset\[1\]: the example .* labels none of",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_any_call(arguments, words):
    lm, engine = rule_lm(answer_if_told_briefly)
    with pytest.raises(ValueError, match=words):
        validated(lm=lm, **arguments)
    assert engine.prompts == []


@pytest.mark.parametrize("number", range(7))
def test_a_row_that_only_some_folds_show_the_denoiser_is_refused_before_any_call(number):
    class Choosy(TemplateAdapter):
        def format(self, signature, demos, inputs):
            if inputs["text"] == ROWS[number].text and len(demos) == 0:
                raise RuntimeError("not this one")
            return super().format(signature, demos, inputs)

    lm, engine = rule_lm(answer_if_told_briefly)
    one = CrossValidation(optimizer(max_metric_calls=120), folds=3)
    with dspy.context(lm=lm, adapter=Choosy()), pytest.raises(ValueError, match="not this one"):
        one.compile(program(), ROWS)
    assert engine.prompts == []


def test_another_optimizer_is_refused():
    with pytest.raises(TypeError, match="optimizer must be a DiffusionInfill, got COPRO"):
        CrossValidation(dspy.COPRO(metric=None))
