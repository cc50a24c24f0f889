"""The Python code that runs a search again, from its records."""

from dspy_diffusion_infill.optimizer.results import DetailedResults

NOT_KNOWN = "# The records of this search do not hold the code that runs it again."


def snippet(results: DetailedResults) -> str:
    """The code that the search has left (``optimizer.rerun``); a comment where there is none."""
    code = results.settings.get("code")
    return code if isinstance(code, str) and code else NOT_KNOWN
