"""``dspy-infill demo``: the main job on the embedded models, or on the user's own rows and LM."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dspy_diffusion_infill.cli.json_files import JsonFile, make_folder

TaskFile = Annotated[Path | None, typer.Option(help="JSONL rows of your own task.")]


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("demo")(demo)


def demo(
    task: TaskFile = None,
    input: Annotated[str, typer.Option(help="Input field of the rows.")] = "text",
    output: Annotated[str, typer.Option(help="Output field of the rows.")] = "label",
    instructions: Annotated[str | None, typer.Option(help="Where to start from.")] = None,
    lm: Annotated[str | None, typer.Option(help="LM such as openai/gpt-4o-mini.")] = None,
    denoiser: Annotated[str | None, typer.Option(help="Name, hub id or folder.")] = None,
    max_metric_calls: Annotated[int, typer.Option(help="Budget of program runs.")] = 240,
    max_heldout: Annotated[int, typer.Option(min=1, help="Held-out rows run at most.")] = 200,
    seed: Annotated[int, typer.Option(help="Decides every random choice.")] = 0,
    log_dir: Annotated[Path | None, typer.Option(help="Folder of a resumable journal.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Improves a small classification program and shows what changed and what it cost."""
    if json_file is not None:
        make_folder(json_file)
    from dspy_diffusion_infill.cli import demo_run

    demo_run.check_fields(task, input, output)
    rows = demo_run.own_rows(task, input, output, seed) if task else demo_run.bundled_rows()
    options = demo_run.DemoOptions(
        input_field=input,
        output_field=output,
        instructions=instructions or demo_run.first_instructions(task, input, output),
        lm=lm,
        denoiser=denoiser,
        max_metric_calls=max_metric_calls,
        max_heldout=max_heldout,
        seed=seed,
        log_dir=log_dir,
    )
    outcome = demo_run.run(rows, options)
    if json_file is not None:  # before anything is printed: the figures are paid for
        text = json.dumps(outcome.figures(), indent=2, ensure_ascii=False) + "\n"
        json_file.write_text(text, encoding="utf-8", errors="backslashreplace")
    demo_run.show(outcome)
    if json_file is not None:
        typer.echo(f"figures written to {json_file}")
