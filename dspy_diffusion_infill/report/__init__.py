"""What people read after a search, and during one: in a terminal, a browser, a pull request."""

from dspy_diffusion_infill.report.terminal import counts_line, diff, print_report

__all__ = ["counts_line", "diff", "print_report"]
