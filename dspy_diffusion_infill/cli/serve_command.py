"""``dspy-infill serve``: a denoiser for other processes and machines."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("serve")(serve_command)


def serve_command(
    denoiser: Annotated[str, typer.Argument(help="A denoiser's name, hub id or folder.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is a free one.")] = 8100,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="DSPY_INFILL_TOKEN",
            help="That requests must have. Other users see options in the list of processes, and "
            "not the variable. Without either, a new one is printed.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name of this machine; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Of a hub checkpoint.")] = None,
    quantization: Annotated[str | None, typer.Option(help="8bit or 4bit.")] = None,
    compile: Annotated[
        str | None, typer.Option(help="With torch: default, or reduce-overhead (GPU).")
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, help="MiB of a request.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that wait.")] = 64,
    max_rows: Annotated[int, typer.Option(min=1, help="Texts joined into a batch.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens joined into a batch.")] = 2**18,
    receive_seconds: Annotated[int, typer.Option(min=1, help="For a request to arrive.")] = 30,
    shutdown_seconds: Annotated[int, typer.Option(min=1, help="To end after SIGTERM.")] = 30,
) -> None:
    """Serves a denoiser over HTTP; load_denoiser("http://…") is its client."""
    try:
        from dspy_diffusion_infill.serving.limits import Limits
        from dspy_diffusion_infill.serving.server import new_token, serve
    except ImportError as error:
        raise ValueError(
            f"serve needs {error.name}: pip install 'dspy-diffusion-infill[serve]'"
        ) from error
    from dspy_diffusion_infill.denoisers.checkpoints.loading import load
    from dspy_diffusion_infill.denoisers.remote.wire import TOKEN_VARIABLE, check_token

    secret = check_token(token) if token else new_token()
    limits = Limits(
        body_bytes=max_body * 2**20,
        waiting=max_waiting,
        rows=max_rows,
        tokens=max_tokens,
        receive_seconds=receive_seconds,
        shutdown_seconds=shutdown_seconds,
    )
    kind = {"device": device, "dtype": dtype}
    loaded = load(denoiser, **kind, revision=revision, quantization=quantization, compile=compile)

    def on_ready(address: str) -> None:
        if not token:
            typer.echo(f"{TOKEN_VARIABLE}={secret}")
        typer.echo(f"serving {loaded.name} at {address} (Ctrl-C ends it)")

    try:
        serve(
            loaded,
            host=host,
            port=port,
            token=secret,
            limits=limits,
            hosts=allow_host or [],
            on_ready=on_ready,
        )
    except OSError as error:
        raise ValueError(f"--host {host} --port {port}: {error.strerror or error}") from error
