"""A search without the texts of its rows, for a report that is passed on."""

from dataclasses import replace

from dspy_diffusion_infill.optimizer.results import DetailedResults, Trial

LEFT_OUT = "…"


def without_rows(results: DetailedResults) -> DetailedResults:
    """The records without inputs and answers of rows, and without what edits share with examples.

    Instructions stay, and so do windows and fills of trials: what a check let pass.
    """
    return replace(
        results,
        inputs=(),
        answers_before=(),
        answers_after=(),
        trials=tuple(map(_without_likeness, results.trials)),
        refused=tuple(one for one in results.refused if one.reason != "copies_example"),
    )


def _without_likeness(trial: Trial) -> Trial:
    nearest = (one and replace(one, text=LEFT_OUT) for one in trial.nearest)
    return replace(trial, nearest=tuple(nearest))
