"""The plots of README and documentation, drawn from the figures in ``docs/figures``."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "figures"
