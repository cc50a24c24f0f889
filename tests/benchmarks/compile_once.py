"""One search, told by JSON on standard input; what it took, as JSON on standard output.

``compile_speed.py`` runs it with the code of two checkouts, so it takes nothing but what both have.
"""

import json
import resource
import sys
import time

import dspy

from dspy_diffusion_infill import (
    DiffusionInfill,
    Sampling,
    TemplateAdapter,
    embedded_lm,
    load_denoiser,
)


def is_right(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
    """Whether the answer is one of the outputs, ignoring case and a final full stop."""

    def folded(text: str) -> str:
        return " ".join(text.lower().split()).removesuffix(".")

    return float(folded(str(prediction.output)) in set(map(folded, example.outputs)))


def cpu_seconds() -> float:
    """Of this process and its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    given = json.loads(sys.stdin.read())
    rows = [dspy.Example(row).with_inputs("input") for row in given["rows"]]
    program = dspy.Predict(dspy.Signature("input -> output", given["instructions"]))
    options = given["options"]
    if cache := options.pop("cache", None):
        options["sampling"] = Sampling(cache=cache)
    denoiser = load_denoiser("smollm2-fs")
    denoiser.encode("loads the tokenizer")
    with dspy.context(lm=embedded_lm(cache=False), adapter=TemplateAdapter()):
        program(input=rows[0].input)
        optimizer = DiffusionInfill(
            is_right,
            denoiser,
            max_metric_calls=given["calls"],
            seed=0,
            max_errors=len(rows),
            num_threads=1,
            display_progress=False,
            **options,
        )
        cpu, started = cpu_seconds(), time.perf_counter()
        results = optimizer.compile(program, rows).detailed_results
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu": cpu,
                "calls": results.metric_calls,
                "passes": results.denoiser_passes,
                "before": results.score_before,
                "after": results.score_after,
            }
        )
    )


if __name__ == "__main__":
    main()
