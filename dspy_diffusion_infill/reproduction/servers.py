"""LM servers that a run starts and stops: those that the cell needs are up, and no others."""

import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dspy_diffusion_infill.errors import ExperimentError
from dspy_diffusion_infill.reproduction.check_servers import (
    models_url,
    serve_command,
    served_models,
)
from dspy_diffusion_infill.reproduction.experiment import ModelSpec
from dspy_diffusion_infill.reproduction.network import answers_of

_LONGEST_START = 3600.0  # seconds: vLLM downloads the weights first
_LONGEST_END = 60.0
_PAUSE = 0.5


@dataclass(slots=True)
class RunningServers:
    """The servers that run now, by model.

    A server stays up until a cell does not need it: judges of many cells in a row start once.

    Attributes:
        specs: the models, with their ``serve`` commands.
        folder: gets a log of each server.
    """

    specs: Mapping[str, ModelSpec]
    folder: Path
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @contextmanager
    def up(self, names: set[str]) -> Iterator[None]:
        """Has these models' servers up, where they have a command, while the block runs.

        Raises:
            ExperimentError: a server ended, or did not answer within an hour.
        """
        wanted = {name for name in names if self.specs[name].serve}
        for name in set(self._running) - wanted:
            self._stop(name)
        for name in sorted(wanted - set(self._running)):
            if not self._answers(name):
                self._start(name)
        for name in sorted(wanted & set(self._running)):
            self._wait(name)
        yield

    def stop(self) -> None:
        """Stops all of them."""
        for name in list(self._running):
            self._stop(name)

    def _start(self, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = shlex.split(serve_command(self.specs[name]))
        with self._log(name).open("ab") as log:
            # In a session of its own: Ctrl-C is for the run, which lets calls under way end.
            self._running[name] = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True
            )

    def _wait(self, name: str) -> None:
        process, deadline = self._running[name], time.monotonic() + _LONGEST_START
        while not self._answers(name):
            if process.poll() is not None or time.monotonic() > deadline:
                self._stop(name)
                raise ExperimentError(
                    f"the server of {name} does not answer: see {self._log(name)}"
                )
            time.sleep(_PAUSE)

    def _answers(self, name: str) -> bool:
        """Whether the model is served at its address, by whomever."""
        spec = self.specs[name]
        if (url := models_url(spec)) is None:
            return False
        return spec.lm.partition("/")[2] in (served_models(answers_of([url])[url]) or ())

    def _stop(self, name: str) -> None:
        process = self._running.pop(name)
        process.terminate()
        try:
            process.wait(_LONGEST_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"
