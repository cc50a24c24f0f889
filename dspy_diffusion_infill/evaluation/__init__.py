"""The paper's evaluation: judges, data sets and measures."""

from dspy_diffusion_infill.evaluation.agreement import Agreement, agreement
from dspy_diffusion_infill.evaluation.gsm8k import gsm8k_answer
from dspy_diffusion_infill.evaluation.judges import (
    ClosenessMetric,
    Judge,
    prometheus,
    prometheus_lm,
)
from dspy_diffusion_infill.evaluation.loading import load_dataset
from dspy_diffusion_infill.evaluation.statistics import bootstrap_interval, compare
from dspy_diffusion_infill.evaluation.transfer import transfer
from dspy_diffusion_infill.evaluation.verdicts import parse_verdict

__all__ = [
    "Agreement",
    "ClosenessMetric",
    "Judge",
    "agreement",
    "bootstrap_interval",
    "compare",
    "gsm8k_answer",
    "load_dataset",
    "parse_verdict",
    "prometheus",
    "prometheus_lm",
    "transfer",
]
