"""Checks everything that a search works with and gathers it in a plan, before anything is paid."""

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import dspy

from dspy_diffusion_infill.contexts import (
    Slot,
    WorkedExample,
    is_stated_once,
    mark_window,
    render_messages,
    render_prompt,
)
from dspy_diffusion_infill.denoisers.protocol import Denoiser
from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.optimizer.acceptance import acceptance_of
from dspy_diffusion_infill.optimizer.checks import check_data
from dspy_diffusion_infill.optimizer.guidance import guide_for, labels_of_rows
from dspy_diffusion_infill.optimizer.holdout import check_held_out, split_holdout
from dspy_diffusion_infill.optimizer.metrics import with_metric
from dspy_diffusion_infill.optimizer.options import Scoring, SearchOptions, default_auto
from dspy_diffusion_infill.optimizer.plan import Plan
from dspy_diffusion_infill.optimizer.repeats import check_noise
from dspy_diffusion_infill.optimizer.spending import check_caps, spending_of
from dspy_diffusion_infill.optimizer.targets import Target
from dspy_diffusion_infill.optimizer.traces import needs_traces, work_examples
from dspy_diffusion_infill.programs import base_of, output_fields
from dspy_diffusion_infill.windows import Piece, Window


def prepare(
    student: dspy.Module,
    trainset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example] | None,
    teacher: dspy.Module | list[dspy.Module] | None,
    *,
    load: Callable[[], Denoiser],
    scoring: Scoring,
    options: SearchOptions,
    validation_lm: dspy.BaseLM | None,
    log_dir: Path | None,
) -> Plan:
    """Checks everything, then loads the denoiser and gathers the plan; no LM is called.

    Args:
        student: as for ``DiffusionInfill.compile``; so are the next three.
        trainset: see above.
        valset: see above.
        teacher: see above.
        load: gives the denoiser.
        scoring: how programs are scored; without a metric, by exact match.
        options: how wide and how long.
        validation_lm: the LM that trials are run with; None is the program's own.
        log_dir: folder of the journal; None keeps no file.

    Raises:
        TypeError: student, data or teacher are of the wrong type.
        ValueError: a row, a predictor's name or a cap is wrong, an LM has no price where
            ``max_cost`` needs it, or the adapter cannot render an example.
        ContextTooLongError: the instructions do not fit the denoiser's context.
    """
    # 1. What the user hands in.
    rows, val, teacher = check_data(
        student, trainset, valset, teacher, has_lm=validation_lm is not None
    )
    check_held_out(options.holdout, student, trainset=rows, valset=val)
    # 2. The program that trials change, and its instructions.
    base, names, before = base_of(student, options.predictors, validation_lm, options.parts)
    # 3. The metric, the rows that take no part, and what guides the search and decides.
    scoring = _complete(scoring, options, base, rows, val)
    kept, held = split_holdout(val, options.holdout, seed=options.seed)
    rows, val = kept if val is rows else rows, kept
    denoiser = load()
    guide = guide_for(base, names[0], options.guidance, denoiser)
    labels = labels_of_rows(val, output_fields(base)) if guide is not None else None
    # 4. What runs cost: those of the student, and of a teacher where rows lack labels.
    wanted = needs_traces(base, names, rows)
    programs = [base, teacher] if teacher is not None and wanted else [base]
    spending = spending_of(programs, [*rows, *val, *held], scoring.prices)
    # 5. The plan, which must be possible within budget and context.
    plan = Plan(
        student=student,
        base=base,
        teacher=teacher,
        trainset=rows,
        valset=val,
        holdout=held,
        names=tuple(names),
        before=before,
        infiller=Infiller(denoiser, options.sampling, options.examples_per_context),
        guide=guide,
        acceptance=acceptance_of(options.acceptance, labels),
        scoring=scoring,
        spending=spending,
        options=options,
        log_dir=log_dir,
        labelled=work_examples(base, names, rows),
        traces_wanted=wanted,
    )
    check_caps(scoring.caps, plan.first_calls + plan.last_calls, spending)
    _check_contexts(plan)
    return plan


def _complete(
    scoring: Scoring,
    options: SearchOptions,
    base: dspy.Module,
    rows: Sequence[dspy.Example],
    val: Sequence[dspy.Example],
) -> Scoring:
    """The scoring with a metric, and with a budget where the order needs one to end.

    Raises:
        ValueError: a metric or a signal that these rows do not allow, or repeats of runs that
            cannot differ.
    """
    check_noise(base, scoring.num_repeats)
    if options.signal == "contrast" and val is not rows:
        raise ValueError(
            "signal='contrast' needs the trainset as the valset: wrong answers are known for rows "
            "that are scored, and guidance looks at the trainset; leave valset out"
        )
    data = {"trainset": rows} if val is rows else {"trainset": rows, "valset": val}
    if isinstance(options.holdout, Sequence):
        data["holdout"] = options.holdout
    budgeted = scoring.for_rows(len(val), default=default_auto(options.order))
    return with_metric(budgeted, output_fields(base), data)


def _check_contexts(plan: Plan) -> None:
    """Renders every labelled example, and one masked context of each predictor.

    Raises ValueError where instructions are longer than their bound.
    """
    targets = plan.targets(plan.labelled)
    _check_parts(plan, targets.values())
    for target in targets.values():
        plan.options.bounds.check_original(target.name, plan.num_tokens(target.text))
        windows = plan.windows(target)
        if not windows:
            continue
        for example in target.slot.examples:
            _check_rendering(target.slot, target.text, example)
        if target.slot.examples:
            rng = random.Random(0)
            plan.infiller.masked_context(target.slot, target.text, windows[0], rng)


def _check_parts(plan: Plan, targets: Iterable[Target]) -> None:
    """Raises ValueError where nothing is of a kind that is to be edited, or is never shown."""
    kinds = {target.slot.part.kind for target in targets}
    if absent := [kind for kind in plan.options.parts if kind not in kinds]:
        raise ValueError(
            f"parts={plan.options.parts!r}, and no output field of {list(plan.names)} has such a "
            f"text: give dspy.OutputField(desc='…'), or leave {absent} out"
        )
    for target in targets:
        if target.slot.part.kind != "instructions" and not _is_shown(target.slot):
            raise ValueError(
                f"parts={plan.options.parts!r}, and {type(target.slot.adapter).__name__} does not "
                f"show {target.name!r} once in the prompt: leave this part out, or use an adapter "
                "that shows it (dspy.ChatAdapter shows descriptions, none of DSPy's shows prefixes)"
            )


def _is_shown(slot: Slot) -> bool:
    """Whether the adapter states the slot's text exactly once in a prompt."""
    window = Window((Piece(0, len(slot.own_text), 0),))
    signature = slot.signature_with(mark_window(slot.own_text, window))
    inputs = slot.examples[0].inputs if slot.examples else dict.fromkeys(signature.input_fields, "")
    return is_stated_once(render_prompt(slot, signature, inputs), window)


def _check_rendering(slot: Slot, text: str, example: WorkedExample) -> None:
    try:
        render_messages(slot, text, [example])
    except Exception as error:
        shown = f"{dict(example.inputs)!r:.100}"
        raise ValueError(
            f"{type(slot.adapter).__name__} cannot render the trainset's example {shown} for the "
            f"predictor {slot.name!r}: {error}"
        ) from error
