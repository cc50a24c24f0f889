"""Every error that this package raises on purpose, in one tree.

Wrong arguments raise the builtin ``ValueError`` or ``TypeError``; the classes here are for what a
caller may want to catch. Each message names the value that was found and the change that mends it.
"""

from typing import Any


class DiffusionInfillError(Exception):
    """The root of this package's errors."""


class DenoiserError(DiffusionInfillError):
    """A masked diffusion LM cannot be loaded or run."""


class UnknownDenoiserError(DenoiserError, ValueError):
    """The name is no known denoiser, no folder, and no hub id."""


class NotMaskedDiffusionError(DenoiserError, ValueError):
    """The checkpoint is of a model that is no masked diffusion LM."""


class MissingMaskTokenError(DenoiserError, ValueError):
    """Neither the config nor the tokenizer of the checkpoint names a mask token."""


class DenoiserMemoryError(DenoiserError, MemoryError):
    """The device ran out of memory, also with half the batch."""


class ContextTooLongError(DenoiserError, ValueError):
    """A request has more tokens than the denoiser's context length."""


class MissingDependencyError(DiffusionInfillError, ImportError):
    """An optional package is needed; the message has the command that installs it."""


EXPECTED = (DiffusionInfillError, ValueError, TypeError, OSError)
"""What a command line says in one line, and not with a traceback."""


class DataError(DiffusionInfillError, ValueError):
    """A data file or data set does not have the form that it must have.

    The message names file, row and field.
    """


class ExperimentError(DiffusionInfillError, RuntimeError):
    """An experiment cannot go on; what it has done so far is in its folder."""


class MissingPiecesError(ExperimentError):
    """No row of a table can run; the message says what provides each missing piece."""


class TooManyErrors(DiffusionInfillError):  # noqa: N818 - the name says what happened, as in stopiteration
    """More than ``max_errors`` metric calls failed.

    Attributes:
        best_program: the best program that was found until then; equal to the student where nothing
            was.
        detailed_results: every trial until then.
    """

    def __init__(
        self, message: str, *, best_program: Any = None, detailed_results: Any = None
    ) -> None:
        super().__init__(message)
        self.best_program = best_program
        self.detailed_results = detailed_results
