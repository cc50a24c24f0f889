"""Programs that can only be awaited, and ``compile`` inside of a running event loop."""

import asyncio

import dspy
from doubles import WordDenoiser, rule_lm
from test_diffusion_infill import ROWS, TASK, answer_if_told_briefly, compile_with, program

from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.template_adapter import TemplateAdapter


class Awaited(dspy.Module):
    def __init__(self):
        super().__init__()
        self.name = program()

    async def aforward(self, text: str) -> dspy.Prediction:
        await asyncio.sleep(0)
        return await self.name.acall(text=text)


def optimizer() -> DiffusionInfill:
    options = {"guidance": None, "display_progress": False, "num_threads": 2}
    return DiffusionInfill(None, WordDenoiser(), max_metric_calls=60, **options)


def acompiled(student: dspy.Module) -> tuple[dspy.Module, int]:
    """The result, and how often the event loop went round meanwhile."""
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    async def both() -> dspy.Module:
        beside = asyncio.create_task(turn())
        better = await optimizer().acompile(student, ROWS)
        beside.cancel()
        return better

    lm, _ = rule_lm(answer_if_told_briefly)
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        return asyncio.run(both()), turns


def test_a_program_that_has_aforward_alone_is_compiled_and_stays_so():
    student = Awaited()
    better, turns = acompiled(student)
    results = better.detailed_results
    assert results.score_after > results.score_before
    assert type(better) is Awaited and not hasattr(better, "forward")
    assert not any(hasattr(row["program"], "forward") for row in better.candidate_programs)
    assert student.name.signature.instructions == TASK and not hasattr(student, "forward")
    assert turns > 2
    lm, _ = rule_lm(answer_if_told_briefly)
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        right = [asyncio.run(better.acall(text=row.text)).colour == row.colour for row in ROWS]
    assert sum(right) / len(right) == results.score_after


def test_any_program_is_compiled_without_holding_the_event_loop():
    better, turns = acompiled(program())
    assert better.detailed_results.score_after > better.detailed_results.score_before
    assert turns > 2


def test_compile_works_in_a_running_event_loop():
    async def in_a_notebook() -> dspy.Module:
        return compile_with(max_metric_calls=24)

    inside = asyncio.run(in_a_notebook()).detailed_results
    assert inside.trials == compile_with(max_metric_calls=24).detailed_results.trials
