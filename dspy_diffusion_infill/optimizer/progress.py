"""The progress bar: best score and calls left."""

from collections.abc import Generator
from contextlib import contextmanager

from tqdm.auto import tqdm

from dspy_diffusion_infill.optimizer.search import Search


@contextmanager
def progress_bar(search: Search, *, total: int, show: bool) -> Generator[None]:
    """Shows metric calls made, the best score and the calls left, after every trial.

    Args:
        search: its ``on_trial`` is set to the bar's update.
        total: the most metric calls that the search can make.
        show: False shows nothing.
    """
    with tqdm(
        total=total,
        initial=search.validator.metric_calls,  # made before the bar: they are no part of its rate
        desc="infilling",
        unit="call",
        disable=not show,
        dynamic_ncols=True,
    ) as bar:

        def update(state: Search) -> None:
            bar.n = state.validator.metric_calls
            left = max(0, total - bar.n)
            accepted = sum(trial.accepted for trial in state.trials)
            bar.set_postfix_str(
                f"best {state.best.mean:.3f}, {accepted} edits kept, {left} calls left"
            )

        update(search)
        search.on_trial = update
        yield
