"""``dspy-infill calibrate``: what the caches of ``Sampling`` cost in exactness."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dspy_diffusion_infill.cli.json_files import JsonFile, make_folder

if TYPE_CHECKING:
    from dspy_diffusion_infill.denoisers.calibration import Calibration, Parallel


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("calibrate")(calibrate_command)


def calibrate_command(
    denoiser: Annotated[str, typer.Argument(help="A denoiser's name, hub id or folder.")],
    tasks: Annotated[
        list[Path] | None,
        typer.Option(
            "--task",
            exists=True,
            dir_okay=False,
            help="JSON file {human_instructions, train: [{input, outputs}]}; may be repeated. "
            "The demo's rows where none is given.",
        ),
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows of each task, at most.")] = 8,
    max_drifts: Annotated[
        list[float] | None,
        typer.Option("--max-drift", min=0, help="Sampling(max_drift=…) too; may be repeated."),
    ] = None,
    other_text: Annotated[
        bool, typer.Option(help="What is kept of a context has seen another text in the window.")
    ] = False,
    json_path: JsonFile = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the contexts.")] = 0,
) -> None:
    """Measures how far a denoiser's KV caches and parallel unmasking are from exact passes."""
    from dspy_diffusion_infill.denoisers.calibration import (
        THRESHOLDS,
        calibrate,
        compare_thresholds,
    )
    from dspy_diffusion_infill.denoisers.checkpoints.loading import load
    from dspy_diffusion_infill.infiller.hidden_windows import (
        bundled_task,
        hidden_windows,
        read_task,
        with_other_text,
    )

    slots = [read_task(file) for file in tasks or []] or [bundled_task()]
    if json_path is not None:
        make_folder(json_path)
    loaded = load(denoiser, device=device, dtype=dtype)
    requests = hidden_windows(loaded, slots, num_windows=windows, seed=seed)
    if other_text:
        requests = with_other_text(requests, seed=seed)
    found = calibrate(loaded, requests, max_drifts or [])
    parallel = compare_thresholds(loaded, requests, THRESHOLDS)
    if json_path is not None:
        figures = {
            "denoiser": loaded.name,
            "caches": [asdict(one) for one in found],
            "thresholds": [asdict(one) for one in parallel],
        }
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    _print(found, parallel)


def _print(found: "Sequence[Calibration]", parallel: "Sequence[Parallel]") -> None:
    typer.echo(
        f"{'cache':8} {'agreement':>9} {'KL':>7} {'NLL':>7} {'exact':>7} {'windows':>7} "
        f"{'drift':>6} {'refreshes':>9}"
    )
    for one in found:
        drift = "" if one.max_drift is None else f"{one.max_drift:g}"
        typer.echo(
            f"{one.cache:8} {one.agreement:9.1%} {one.kl:7.3f} {one.nll:7.3f} "
            f"{one.nll_exact:7.3f} {one.num_windows:7} {drift:>6} {one.refreshes:9.2f}"
        )
    columns = ("threshold", "agreement", "passes", "without", "NLL", "accuracy")
    typer.echo("\n" + " ".join(f"{name:>9}" for name in columns))
    for one in parallel:
        typer.echo(
            f"{one.threshold!s:>9} {one.agreement:9.1%} {one.passes:9.2f} {one.most_passes:9.2f} "
            f"{one.nll:9.3f} {one.accuracy:9.1%}"
        )
