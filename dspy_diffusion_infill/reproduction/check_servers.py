"""Which LM servers, keys and programs that serve are missing."""

import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import httpx

from dspy_diffusion_infill.reproduction.experiment import ModelSpec
from dspy_diffusion_infill.reproduction.missing_pieces import Missing, missing
from dspy_diffusion_infill.reproduction.network import Answers
from dspy_diffusion_infill.reproduction.targets import PaperItem, PaperRow


def server_urls(target: PaperItem) -> set[str]:
    """The addresses at which the servers of the rows list their models."""
    specs = (target.specs[name] for name in _asked(target))
    return {url for spec in specs if (url := models_url(spec))}


def missing_servers(target: PaperItem, answers: Answers) -> Iterator[Missing]:
    """Servers that do not answer or serve another model, and API keys that are not set.

    Those that ``--serve`` starts need vLLM alone.

    Args:
        target: what is asked for.
        answers: of ``server_urls``.
    """
    found: dict[tuple[str, str], dict[str, list[PaperRow]]] = {}
    for name, users in _asked(target).items():
        spec = target.specs[name]
        url = models_url(spec)
        problem = _key_problem(spec) if url is None else _problem(spec, url, answers.get(url))
        if problem:
            found.setdefault(problem, {})[name] = users
    for (what, command), by_name in found.items():
        rows = {row.number: row for users in by_name.values() for row in users}
        yield missing(f"the LM of {', '.join(by_name)}, {what}", command, rows.values())
    started = {name for name, spec in target.specs.items() if target.serve and spec.serve}
    rows = [row for row in target.measured if row.lms(target.specs) & started]
    if rows and shutil.which("vllm") is None:
        yield missing("the program vllm, which --serve starts", "pip install vllm", rows)


def serve_command(spec: ModelSpec) -> str:
    """The command that serves a model, with the place of its chat template; empty is unknown."""
    return spec.serve.format(prompts=files("dspy_diffusion_infill.evaluation") / "prompts")


def served_models(answer: httpx.Response | None) -> Sequence[str] | None:
    """The models that a server lists; None where it lists none."""
    try:
        content: Any = answer.json() if answer is not None and answer.is_success else None
        return [str(one["id"]) for one in content["data"]]
    except (ValueError, LookupError, TypeError):
        return None


def _asked(target: PaperItem) -> dict[str, list[PaperRow]]:
    """The models whose servers have to be up already, with the rows that ask them."""
    users: dict[str, list[PaperRow]] = {}
    for row in target.measured:
        for name in sorted(row.lms(target.specs)):
            spec = target.specs[name]
            if not (spec.is_local or (target.serve and spec.serve)):
                users.setdefault(name, []).append(row)
    return users


def models_url(spec: ModelSpec) -> str | None:
    """Where a model's server lists what it serves; None is a provider's API."""
    base = spec.options.get("api_base") or spec.options.get("base_url")
    return f"{str(base).rstrip('/')}/models" if base else None


def _problem(spec: ModelSpec, url: str, answer: httpx.Response | None) -> tuple[str, str] | None:
    model = spec.lm.partition("/")[2]
    base = url.removesuffix("/models")
    command = serve_command(spec) or f"serve {model} at {base}, or name another --api-base"
    if answer is None:
        return f"no server answers at {base}", command
    served = served_models(answer)
    if served and model not in served:
        return f"the server at {base} serves {', '.join(served)}", command
    return None


def _key_problem(spec: ModelSpec) -> tuple[str, str] | None:
    """What an API without an address of ours lacks: litellm knows the names of the keys."""
    if spec.options.get("api_key"):
        return None
    try:
        from litellm import validate_environment

        keys = validate_environment(spec.lm)["missing_keys"]
    except ImportError:
        variable = f"{spec.lm.partition('/')[0].upper()}_API_KEY"
        keys = [] if os.environ.get(variable) else [variable]
    if not keys:
        return None
    return f"the key of {spec.lm} is not set", "export " + " ".join(f"{key}=…" for key in keys)
