"""Programs that can only be awaited."""

from collections.abc import Callable
from typing import Any

import dspy

from dspy_diffusion_infill.programs import copy_program, is_awaitable_only


def compile_awaitable(
    compile_: Callable[..., dspy.Module], student: Any, *args: Any, **options: Any
) -> dspy.Module:
    """Compiles a program, be it one that has ``aforward`` alone: its runs are awaited then.

    Args:
        compile_: the optimizer's ``compile``.
        student: any program; not changed.
        args: see ``compile``.
        options: see ``compile``.
    """
    if not isinstance(student, dspy.Module) or not is_awaitable_only(student):
        return compile_(student, *args, **options)
    result = compile_(dspy.syncify(copy_program(student)), *args, **options)
    for program in (
        result,
        *(row["program"] for row in vars(result).get("candidate_programs", ())),
    ):
        vars(program).pop("forward", None)  # what syncify has added
    return result
