"""The comparison of optimizers: the cap, the curves, the resume, and the adapter of small LMs."""

from itertools import pairwise
from types import SimpleNamespace

import dspy
import pytest
from doubles import RuleEngine, WordCountScorer, WordDenoiser, rule_lm
from tiny_models import MASK, byte_tokenizer, save_causal

pytest.importorskip("optuna")
pytest.importorskip("cutia")
pytest.importorskip("matplotlib")

import rivals
from induction import Task, equals_one_of
from rival_arms.chunks import located
from rival_arms.curves import Outcome, report
from rival_arms.field_by_field import FieldByField
from rival_arms.fillers import CausalFills, OtherFills, RandomWords
from rival_arms.infilling import ABLATIONS, infill
from rival_arms.job import Job
from rival_arms.ledger import BudgetSpent, Incumbent, Ledger
from rival_arms.plot import save

from dspy_diffusion_infill import Sampling, TemplateAdapter
from dspy_diffusion_infill.denoisers import InfillRequest
from dspy_diffusion_infill.denoisers.checkpoints.causal import load_causal
from dspy_diffusion_infill.optimizer import guidance

START = "Say what it is."
ROWS = tuple(
    dspy.Example(input=f"thing {k}", output="yes", outputs=["yes"]).with_inputs("input")
    for k in range(4)
)
CUT_OFF = ("copro", "mipro", "gepa", "cutia")  # these ask for more than they may have
EXACT = ("infill", "paper", "random", "ape", "ape_guided")


def answers(prompt: str) -> str:
    """Right for one thing alone; a proposer gets a new instruction from each prompt."""
    if "\nOutput:" in prompt and "friend" not in prompt:
        return "yes" if "thing 1" in prompt else "no"
    return f"Please say {abs(hash(prompt)) % 97} times what it is."


class Writer(RuleEngine):
    """Writes a new text at each call."""

    def complete(self, request):
        self.rule = lambda prompt: f"Say number {len(self.prompts)} of them."
        return super().complete(request)


def job_of(budget: int, prompt_engine: RuleEngine | None = None) -> Job:
    program = dspy.Predict(dspy.Signature("input -> output", START))
    writer = prompt_engine or Writer(str)
    return Job(
        program=program,
        rows=list(ROWS),
        metric=equals_one_of,
        ledger=Ledger(START, ROWS, equals_one_of, budget),
        seed=0,
        denoiser=WordDenoiser(),
        denoiser_name="none",
        sampling=Sampling(),
        prompt_lm=dspy.LM("test/writer", engine=writer, cache=False, num_retries=0),
        words=["make it short"],
    )


def run(name: str, budget: int, monkeypatch, threads: int = 1):
    """(calls of the LM, the job, incumbents, what ended it) of an arm under the cap."""
    monkeypatch.setattr(guidance, "default_scorer", lambda lm, denoiser: WordCountScorer())
    lm, engine = rule_lm(answers)
    job = job_of(budget)
    arm = {**rivals.ARMS, **ABLATIONS}[name]
    shared = {"lm": lm, "adapter": FieldByField(0), "num_threads": threads, "max_errors": 10**6}
    with dspy.context(callbacks=[job.ledger], **shared):
        found, error = rivals.run_arm(arm, job)
    return len(engine.prompts), job, found, error


@pytest.mark.filterwarnings("ignore:The 'format' argument:DeprecationWarning")  # cutia's
@pytest.mark.parametrize("name", [*EXACT, *CUT_OFF])
def test_no_arm_runs_the_program_more_often_than_it_may(name, monkeypatch):
    calls, job, found, error = run(name, 22, monkeypatch)
    assert error is None
    assert calls == len(job.ledger.runs)
    assert 16 <= calls <= 22
    assert calls == 22 or name not in ("copro", "mipro", "cutia")
    assert found[0] == (0, START)
    assert len({run.instructions for run in job.ledger.runs}) > 1
    assert all(a.calls < b.calls <= calls for a, b in pairwise(found))


def test_threads_do_not_pass_the_cap(monkeypatch):
    calls, _, _, error = run("copro", 21, monkeypatch, threads=3)
    assert error is None
    assert 19 <= calls <= 21  # two may still be under way in other threads


def test_an_arm_that_fails_says_so_and_keeps_what_it_had(monkeypatch):
    def broken(job):
        job.program(input="thing 1")
        raise ImportError("no such package")

    monkeypatch.setitem(rivals.ARMS, "broken", broken)
    calls, _, found, error = run("broken", 22, monkeypatch)
    assert (calls, found, error) == (1, [(0, START)], "ImportError: no such package")


def test_the_incumbent_is_the_best_of_those_that_were_run_on_all_rows():
    says = iter(["yes", "no", "yes", "yes", "no", "yes"])
    ledger = Ledger(START, ROWS[:2], equals_one_of, budget=6)
    lm, _ = rule_lm(lambda prompt: next(says))
    with dspy.context(lm=lm, adapter=TemplateAdapter(), callbacks=[ledger]):
        for text in (START, "Better.", "Worse."):
            for row in ROWS[:2]:
                dspy.Predict(dspy.Signature("input -> output", text))(input=row.input)
        with pytest.raises(BudgetSpent):
            dspy.Predict(dspy.Signature("input -> output", "One more."))(input="thing 0")
    assert [run.score for run in ledger.runs] == [1, 0, 1, 1, 0, 1]
    assert ledger.trajectory() == [Incumbent(0, START), Incumbent(4, "Better.")]
    assert ledger.trajectory(final="Worse.")[-1] == (6, "Worse.")


def test_ours_says_itself_what_it_holds_to_be_best(monkeypatch):
    """A race that was given up has fewer runs than there are rows."""
    monkeypatch.setattr(guidance, "default_scorer", lambda lm, denoiser: WordCountScorer())
    lm, _ = rule_lm(lambda prompt: "yes" if "only" in prompt else "no")
    job = job_of(60)
    with dspy.context(lm=lm, adapter=TemplateAdapter(), callbacks=[job.ledger], num_threads=1):
        (start, (calls, text), *_) = infill(job, validation="racing", order="adaptive")
    assert start == (0, START)
    assert "only" in text
    assert job.ledger.runs[calls - 1].instructions == text
    assert [run.instructions for run in job.ledger.runs].index(text) == calls - len(ROWS)


def test_fills_are_words_of_the_source_and_nothing_else_changes():
    denoiser = WordDenoiser()
    fills = OtherFills(denoiser, RandomWords(denoiser, ["long words", "long ones"]))
    ids = [*denoiser.encode("Say it").input_ids, -1, -1, *denoiser.encode(" now").input_ids, -1]
    first, again, other = (
        fills.decode(fills.infill([InfillRequest(ids, seed)], Sampling())[0].input_ids).split()
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first[:2] + first[4:5] == ["Say", "it", "now"]
    assert {*first[2:4], first[5]} <= {"long", "words", "ones"}


def test_the_causal_lm_goes_on_from_the_left_without_special_tokens(tmp_path):
    model = load_causal(save_causal(tmp_path)).eval()
    tokenizer = byte_tokenizer()
    mask_id = tokenizer.convert_tokens_to_ids(MASK)
    checkpoint = SimpleNamespace(temperature=0.8)
    own = SimpleNamespace(tokenizer=tokenizer, mask_id=mask_id, checkpoint=checkpoint)
    fills = CausalFills(own, model)
    first, again, other = (fills.fill([1, 2, 3], 40, seed, Sampling()) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == len(other) == 40
    assert not {mask_id, *tokenizer.all_special_ids} & {*first, *other}


@pytest.mark.parametrize(
    ("quote", "chunk"),
    [
        ("the sentence", "the sentence"),
        ("The senten", "the sentence"),
        ("sentence is rude, or", "sentence is rude or"),
        ("", ""),
    ],
)
def test_a_chunk_is_the_words_that_are_most_like_what_the_lm_quotes(quote, chunk):
    text = "Say if the sentence is rude or not, in one word."
    left, found, right = located(text, quote)
    assert (left + found + right, found) == (text, chunk)


def outcome(**changes) -> Outcome:
    """The start, and two better incumbents, of 100 runs."""
    curve, texts = ((0, 0.2), (50, 0.6), (80, 0.7)), ("x", "y", "z")
    where = {"task": "a", "half": "choose", "answers": "free", "arm": "infill", "seed": 0}
    what = {"budget": 100, "calls": 100, "tried": 6, "curve": curve, "instructions": texts}
    return Outcome(**{**where, **what, "error": None, "seconds": 1.0, **changes})


def test_area_gain_and_runs_to_the_gain_of_a_curve():
    one = outcome()
    assert one.area == pytest.approx(0.5 * 0.2 + 0.3 * 0.6 + 0.2 * 0.7)
    assert one.gain == pytest.approx(0.5)
    assert [one.calls_to(score) for score in (0.2, 0.3, 0.65, 0.9)] == [0, 50, 80, 100]
    assert [one.score_at(calls) for calls in (0, 49, 50, 100)] == [0.2, 0.2, 0.6, 0.7]
    assert outcome(curve=((0, 0.2),)).area == pytest.approx(0.2)


def test_tables_are_over_tasks_and_each_half_has_its_own(tmp_path):
    flat = {"curve": ((0, 0.2),), "instructions": ("x",)}
    outcomes = [
        *(outcome(task=task, half=half, seed=seed)
          for task, half in (("a", "choose"), ("b", "report")) for seed in (0, 1)),
        *(outcome(task=task, half=half, arm="copro", **flat)
          for task, half in (("a", "choose"), ("b", "report"))),
        outcome(arm="mipro", calls=0, error="ImportError: optuna", **flat),
    ]  # fmt: skip
    text = report(outcomes, "infill")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Half: choose", "## Half: report", "## Half: all",
    ]  # fmt: skip
    assert "| infill | 2 | 42.0 |  | +50.0 |  | +50.0 | 100 | 6.0 | 80 |" in text
    assert "| copro | 1 | 20.0 | -22.0 | +0.0 | -50.0 | +0.0 | 100 | 6.0 | 100 |" in text
    assert "| mipro | did not run |" in text
    assert "- mipro, a, seed 0: ImportError: optuna" in text
    save(outcomes, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.parametrize("is_torn", [False, True])
def test_what_the_file_has_is_not_run_again(is_torn, tmp_path, monkeypatch):
    task = Task("things", "choose", (START,), ROWS, ROWS)
    options = rivals.parsed(
        ["--data", "x", "--json", str(tmp_path / "out.jsonl"), "--calls", "8",
         "--seeds", "1", "--answers", "free", "literal"]
    )  # fmt: skip
    lm, _ = rule_lm(answers)
    setting = rivals.Setting(
        lm=lm, prompt_lm=lm, is_embedded=True, denoiser=WordDenoiser(), options=options, words={}
    )  # fmt: skip
    ran: list[str] = []

    def arm(job: Job) -> list[Incumbent]:
        ran.append(str(job.program.signature.output_fields["output"].annotation))
        return [Incumbent(0, START), Incumbent(5, "Say only yes.")]

    first = rivals.run_all(setting, [task], {"one": arm})
    assert first[0].curve == ((0, 0.25), (5, 0.25))
    if is_torn:
        with options.json.open("a") as file:
            file.write('{"key": "thi')
    assert rivals.run_all(setting, [task], {"one": arm}) == first
    rivals.run_all(setting, [task], {"one": arm, "two": arm})
    assert ran == ["<class 'str'>", "typing.Literal['yes']"] * 2


def test_fields_are_asked_for_one_by_one_of_an_lm_that_completes_text():
    class Write(dspy.Signature):
        """Improve the instruction."""

        old: str = dspy.InputField()
        new: str = dspy.OutputField()
        is_good: bool = dspy.OutputField()

    replies = iter(["", "Say it now.", "hardly", "true", "Say it.", "false"])
    lm, engine = rule_lm(lambda prompt: next(replies))
    with dspy.context(lm=lm, adapter=FieldByField(0)):
        answer = dspy.Predict(Write, n=2, temperature=1.0)(old="Say.")
    assert answer.completions.new == ["Say it now.", "Say it."]
    assert answer.completions.is_good == [True, False]
    assert engine.prompts[0] == engine.prompts[1]  # no answer: asked again
    assert engine.prompts[1].endswith("Improve the instruction.\n\nOld: Say.\nNew:")
    assert engine.prompts[3].endswith("Old: Say.\nNew: Say it now.\nIs Good:")


def test_the_task_itself_is_asked_as_ever():
    lm, engine = rule_lm(lambda prompt: "yes")
    program = dspy.Predict(dspy.Signature("input -> output", START))
    with dspy.context(lm=lm, adapter=FieldByField(0)):
        assert program(input="thing").output == "yes"
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        program(input="thing")
    assert engine.prompts[0] == engine.prompts[1]
