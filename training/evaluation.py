"""What is measured of a model in training: the infill probe, and held-out responses' NELBO."""

from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser
from dspy_diffusion_infill.training.callbacks import Figures
from dspy_diffusion_infill.training.diffusion_perplexity import row_perplexity
from dspy_diffusion_infill.training.options import EvaluationOptions
from dspy_diffusion_infill.training.probe import probe, read_probe_rows
from dspy_diffusion_infill.training.sources import read_pairs


def evaluate(denoiser: TransformerDenoiser, options: EvaluationOptions, *, seed: int) -> Figures:
    """The figures that the options ask for, by name; empty where they ask for none.

    Raises:
        DataError: a file of the options cannot be read.
    """
    figures: Figures = {}
    was_training = denoiser.model.training
    denoiser.model.eval()
    if options.probe is not None:
        rows = read_probe_rows(options.probe, limit=options.probe_rows)
        found = probe(denoiser, rows, seed=seed).figures()
        figures |= {f"probe_{name}": value for name, value in found.items()}
    if options.held_out is not None:
        pairs = read_pairs(options.held_out)[: options.held_out_rows]
        result = row_perplexity(denoiser, pairs, num_samples=options.num_samples, seed=seed)
        figures |= {
            "nelbo": result.nelbo,
            "nelbo_standard_error": result.nelbo_standard_error,
            "perplexity": result.perplexity,
            "perplexity_standard_error": result.standard_error,
        }
    denoiser.model.train(was_training)
    return figures
