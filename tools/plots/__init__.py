"""The plots of README and documentation, drawn from the figures in ``docs/figures``."""
