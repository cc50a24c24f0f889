"""Python programs in processes of their own, forked from one that has done all imports.

A new interpreter spends 6 s of CPU on torch, transformers and peft and 7 s on the embedded
denoiser, more than most tests do with them. The standard library's fork server pays that once.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

# macOS's own libraries do not bear a fork.
_CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_CONTEXT.set_forkserver_preload(["warm"])


@dataclass(frozen=True, slots=True)
class Program:
    """A program that runs, or has run.

    Attributes:
        process: with ``pid``, ``kill``, ``exitcode`` and ``is_alive``.
        folder: with its ``stdout`` and ``stderr``.
    """

    process: BaseProcess
    folder: Path

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return (self.folder / "stdout").read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        """Its messages and its traceback so far."""
        return (self.folder / "stderr").read_text(encoding="utf-8")

    def poll(self) -> int | None:
        """As ``Popen.poll``."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """As ``Popen.wait``."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutError(f"it still runs after {timeout} s:\n{self.stderr}")
        return self.process.exitcode


def start(words: list[str], output: Path, *, cwd: Path, **environment: str) -> Program:
    """Starts ``python WORDS``: a file or ``-m`` and a module, and arguments.

    Args:
        words: as on the command line.
        output: a folder for what it prints; it is made.
        cwd: its working folder.
        environment: variables over those of this process.
    """
    output.mkdir(parents=True, exist_ok=True)
    for name in ("stdout", "stderr"):
        (output / name).touch()
    variables = {**os.environ, **environment}
    process = _CONTEXT.Process(target=_run, args=(words, output.resolve(), cwd, variables))
    with _importing_from(sys.path):
        process.start()
    return Program(process, output)


def run(words: list[str], output: Path, *, cwd: Path, **environment: str) -> Program:
    """``start``, and waits for the end, which is a good one."""
    program = start(words, output, cwd=cwd, **environment)
    assert program.wait() == 0, f"{words}:\n{program.stderr}"
    return program


@contextmanager
def _importing_from(path: list[str]) -> Iterator[None]:
    """The fork server imports ``warm`` from where this process would."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _run(words: list[str], output: Path, cwd: Path, variables: dict[str, str]) -> None:
    """The forked process's part: what the interpreter does with its command line."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with open(output / name, "wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
