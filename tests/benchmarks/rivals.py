"""``DiffusionInfill`` against its rivals: same program, LM, rows and budget, in one run.

    python tests/benchmarks/rivals.py --data FOLDER [FOLDER ...] --demo --json OUT.jsonl

Each arm may run the program ``--calls`` times, its first evaluation included; an arm
that asks for more is cut off, and its best instructions so far count. These incumbents are then
scored on held-out rows, outside the budget. The figure of merit is the area under that curve, as
the mean score over the budget.

Arms: ``infill`` (the default options), ``left_to_right`` (with guidance), ``paper`` (the paper's
procedure), ``random`` (the windows of ``infill`` filled with words of the other tasks' human
instructions), ``causal`` (filled by the causal LM that the denoiser was made from, given the text
left of them), ``ape`` (whole instructions), ``ape_guided`` (ranked by our guidance), ``copro``,
``mipro`` (instructions only), ``gepa``, ``cutia``. ``--ablate`` adds ``infill`` with one thing
changed each (``rival_arms/infilling.py``).

OUT.jsonl gets a line for each task, kind of answers, seed and arm; what it has is not run again.
Beside it are written OUT.md, the tables, and OUT.svg, the plot. With the embedded LM (no ``--lm``),
the rivals' prompts are asked field by field, so that none is lost on a reply that cannot be read.
"""

import argparse
import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dspy
from induction import HALVES, NUM_TRAIN, Task, accuracy, demo_task, equals_one_of, load_tasks
from rival_arms import infilling, writing
from rival_arms.curves import Outcome, report
from rival_arms.field_by_field import FieldByField
from rival_arms.job import Arm, Job
from rival_arms.ledger import BudgetSpent, Incumbent, Ledger

from dspy_diffusion_infill import Sampling, TemplateAdapter, embedded_lm, load_denoiser
from dspy_diffusion_infill.denoisers.protocol import Denoiser
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.outcomes import describe_error

ARMS = {**infilling.ARMS, **writing.ARMS}
_PROMPT_TOKENS = {"max_tokens": 64, "context_length": 4096}  # of the embedded LM that proposes


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all arms share.

    Attributes:
        lm: the program's.
        prompt_lm: writes instructions.
        is_embedded: whether they are the embedded LM, which needs adapters of its own.
        denoiser: loaded.
        options: of the command line.
        words: human instructions by task, for random fills.
    """

    lm: dspy.BaseLM
    prompt_lm: dspy.BaseLM
    is_embedded: bool
    denoiser: Denoiser
    options: argparse.Namespace
    words: dict[str, tuple[str, ...]]

    def adapter(self, seed: int) -> Any:
        return FieldByField(seed) if self.is_embedded else dspy.ChatAdapter()

    def key(self, task: Task, answers: str, arm: str, seed: int) -> str:
        """Of a line: all that its figures depend on, code and weights apart."""
        o = self.options
        shared = f"{o.calls} runs, {o.test_rows or 'all'} test rows"
        models = f"{self.lm.model}, {self.prompt_lm.model}, {o.denoiser}"
        sampling = f"cache {o.cache}"
        return f"{task.name}/{answers}/{arm}/{seed} ({shared}; {models}, {sampling})"


def run_arm(arm: Arm, job: Job) -> tuple[list[Incumbent], str | None]:
    """The incumbents, and what ended the arm before its time."""
    try:
        return arm(job), None
    except BudgetSpent:
        return job.ledger.trajectory(), None
    except Exception as error:  # one arm's failure is a finding, and the others go on
        logging.getLogger(__name__).debug("an arm failed", exc_info=True)
        return job.ledger.trajectory(), describe_error(error)


def run_one(setting: Setting, task: Task, answers: str, name: str, arm: Arm, seed: int) -> Outcome:
    """Runs one arm, then scores its incumbents on the held-out rows."""
    options = setting.options
    program, rows = task.program(is_typed=answers == "literal"), task.rows(seed)
    start = program.signature.instructions
    ledger = Ledger(start, rows, equals_one_of, options.calls)
    job = Job(
        program=program,
        rows=rows,
        metric=equals_one_of,
        ledger=ledger,
        seed=seed,
        denoiser=setting.denoiser,
        denoiser_name=options.denoiser,
        sampling=Sampling(cache=options.cache),
        prompt_lm=setting.prompt_lm,
        words=[text for name, own in setting.words.items() if name != task.name for text in own],
    )
    shared = {"lm": setting.lm, "max_errors": 10**6, "num_threads": options.num_threads}
    started = time.perf_counter()
    with dspy.context(adapter=setting.adapter(seed), callbacks=[ledger], **shared), _silence():
        incumbents, error = run_arm(arm, job)
    seconds = time.perf_counter() - started
    adapter = TemplateAdapter() if setting.is_embedded else dspy.ChatAdapter()
    with dspy.context(adapter=adapter, **shared), _silence():
        scores = {text: _held_out(program, text, task, options) for _, text in incumbents}
    return Outcome(
        task=task.name,
        half=task.half,
        answers=answers,
        arm=name,
        seed=seed,
        budget=options.calls,
        calls=len(ledger.runs),
        tried=len({run.instructions for run in ledger.runs}),
        curve=tuple((calls, scores[text]) for calls, text in incumbents),
        instructions=tuple(text for _, text in incumbents),
        error=error,
        seconds=round(seconds, 1),
    )


def _held_out(program: dspy.Predict, text: str, task: Task, options: argparse.Namespace) -> float:
    changed = program.deepcopy()
    changed.signature = program.signature.with_instructions(text)
    return accuracy(changed, task.test[: options.test_rows])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what optimizers print: progress bars, and each of their candidates."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def run_all(setting: Setting, tasks: Sequence[Task], arms: dict[str, Arm]) -> list[Outcome]:
    """Every arm on every task under every seed; a line that is there is not run again."""
    journal, outcomes = Journal(setting.options.json), []
    for seed in range(setting.options.seeds):
        for task in tasks:
            for answers in setting.options.answers:
                if answers == "literal" and not task.labels():
                    continue
                for name, arm in arms.items():
                    key = setting.key(task, answers, name, seed)
                    if journal.get(key) is None:
                        outcome = run_one(setting, task, answers, name, arm, seed)
                        journal.put(key, asdict(outcome), about="outcome")
                        print(_line(outcome), flush=True)
                    outcomes.append(Outcome(**journal.get(key)))
    return outcomes


def _line(outcome: Outcome) -> str:
    scores = f"{outcome.curve[0][1]:.2f} -> {outcome.curve[-1][1]:.2f}, area {outcome.area:.3f}"
    runs = f"{outcome.calls} runs of {outcome.tried} instructions"
    ended = f" ({outcome.error})" if outcome.error else ""
    return (
        f"{outcome.task} {outcome.answers} seed {outcome.seed} {outcome.arm}: {scores}, "
        f"{runs}, {outcome.seconds:.0f} s{ended} {outcome.instructions[-1]!r}"
    )


def chosen_arms(options: argparse.Namespace) -> dict[str, Arm]:
    """The arms that are asked for, and the ablations.

    Raises:
        SystemExit: one of them, or the one to compare with, is not known.
    """
    known = {**ARMS, **infilling.ABLATIONS}
    names = options.arms.split(",") if options.arms else list(ARMS)
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"--arms must be among {list(known)}, got {unknown}")
    names += infilling.ABLATIONS if options.ablate else ()
    if options.reference not in (None, *names):
        raise SystemExit(f"--reference must be among {names}, got {options.reference}")
    return {name: known[name] for name in names}


def setting_of(options: argparse.Namespace, tasks: Sequence[Task]) -> Setting:
    """Loads the models."""
    is_embedded = options.lm is None
    if is_embedded and options.prompt_lm:
        raise SystemExit("--prompt-lm must be given together with --lm, got it alone")
    lm = embedded_lm() if is_embedded else dspy.LM(options.lm)
    prompt_lm = (
        embedded_lm(**_PROMPT_TOKENS, temperature=1.0, cache=False)
        if is_embedded
        else dspy.LM(options.prompt_lm or options.lm, temperature=1.0, max_tokens=4000, cache=False)
    )
    return Setting(
        lm=lm,
        prompt_lm=prompt_lm,
        is_embedded=is_embedded,
        denoiser=load_denoiser(options.denoiser),
        options=options,
        words={task.name: task.instructions for task in tasks},
    )


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--tasks", help="comma-separated; all files of the folders by default")
    parser.add_argument("--demo", action="store_true", help="the demo's reviews too")
    parser.add_argument("--half", choices=HALVES, default="all")
    parser.add_argument("--answers", choices=("free", "literal"), nargs="+", default=["free"])
    parser.add_argument("--arms", help="comma-separated; all but the ablations by default")
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--reference", help="arm to compare with; the first by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=400, help="runs that each arm may make")
    parser.add_argument("--test-rows", type=int)
    parser.add_argument("--num-threads", type=int, default=1, help="1 keeps runs in order")
    parser.add_argument("--lm", help="of litellm, such as openai/gpt-4o-mini; embedded by default")
    parser.add_argument("--prompt-lm", help="writes instructions; --lm by default")
    parser.add_argument("--denoiser", default="smollm2-fs")
    parser.add_argument("--cache", choices=["off", "window", "around", "context"], default="off")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed()
    for name in ("dspy", "dspy_diffusion_infill", "cutia", "gepa"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # answers that are empty are scored 0
    if options.calls < 2 * NUM_TRAIN:  # the start and one more
        raise SystemExit(f"--calls must be at least {2 * NUM_TRAIN}, got {options.calls}")
    arms = chosen_arms(options)
    tasks = load_tasks(options.data, options.half, options.tasks)
    if options.demo and options.half != "report":
        tasks.append(demo_task())
    setting = setting_of(options, load_tasks(options.data))
    outcomes = run_all(setting, tasks, arms)
    tables = report(outcomes, options.reference or next(iter(arms)))
    options.json.with_suffix(".md").write_text(tables + "\n", encoding="utf-8")
    from rival_arms.plot import save

    save(outcomes, options.json.with_suffix(".svg"))
    print(tables)


if __name__ == "__main__":
    main()
