"""What is measured of a model in training: the infill probe, and held-out responses' NELBO."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.training.callbacks import LoggedFigures
from dspy_diffusion_infill.training.diffusion_perplexity import row_perplexity
from dspy_diffusion_infill.training.mixture import row_fits
from dspy_diffusion_infill.training.options import EvaluationOptions
from dspy_diffusion_infill.training.probe import (
    ProbeRow,
    probe,
    read_probe_rows,
    tokenize_windows,
)
from dspy_diffusion_infill.training.rows import Row
from dspy_diffusion_infill.training.sources import read_pairs


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """The figures that a recipe asks for, and the data that they are measured on.

    Attributes:
        options: of the recipe.
        windows: of the infill probe.
        pairs: rows with a response, whose NELBO is measured.
    """

    options: EvaluationOptions
    windows: Sequence[ProbeRow]
    pairs: Sequence[Row]

    def fitting(self, denoiser: TransformerDenoiser) -> "EvaluationData":
        """The same with as many held-out rows as are asked for, the first that fit the denoiser.

        Raises:
            ContextTooLongError: a window's text does not fit.
            DataError: no token lies wholly inside a window, or no held-out row fits.
        """
        tokenize_windows(denoiser, self.windows)
        if self.options.held_out is None:
            return self
        limit = denoiser.context_length
        fitting = (row for row in self.pairs if row_fits(row, coder=denoiser, limit=limit))
        pairs = list(islice(fitting, self.options.held_out_rows))
        if not pairs:
            raise DataError(
                f"evaluation.held_out={self.options.held_out!r}: none of {len(self.pairs)} rows "
                f"fits the context_length={limit} of {denoiser.name}"
            )
        return replace(self, pairs=pairs)

    def measure(self, denoiser: TransformerDenoiser, *, seed: int) -> LoggedFigures:
        """The figures by name; empty where none are asked for."""
        figures: LoggedFigures = {}
        was_training = denoiser.model.training
        denoiser.model.eval()
        if self.windows:
            found = probe(denoiser, self.windows, seed=seed).figures()
            figures |= {f"probe_{name}": value for name, value in found.items()}
        if self.pairs:
            samples = self.options.num_samples
            result = row_perplexity(denoiser, self.pairs, num_samples=samples, seed=seed)
            figures |= {
                "nelbo": result.nelbo,
                "nelbo_standard_error": result.nelbo_standard_error,
                "nelbo_num_rows": len(self.pairs),
                "perplexity": result.perplexity,
                "perplexity_standard_error": result.standard_error,
            }
        denoiser.model.train(was_training)
        return figures


def read_evaluation(options: EvaluationOptions) -> EvaluationData:
    """Reads what will be measured on, so that a bad file stops a run before its first step.

    Raises:
        DataError: a file or data set of the options cannot be read.
    """
    windows: list[ProbeRow] = []
    pairs: list[Row] = []
    if options.probe is not None:
        windows = read_probe_rows(options.probe, limit=options.probe_rows)
    if options.held_out is not None:
        try:
            pairs = read_pairs(options.held_out, split=options.held_out_split)
        except DataError as error:
            raise DataError(
                f"evaluation.held_out: {error}; set evaluation.held_out to rows of your own "
                "(and held_out_split to null), or to null to measure none"
            ) from error
    return EvaluationData(options, windows, pairs)
