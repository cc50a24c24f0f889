"""The runs of one evaluation in the journal, each on a line of its own as it ends."""

import logging
from typing import Annotated, Any

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, with_config
from typing_extensions import NotRequired, TypedDict

from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.trace_json import TraceJson
from dspy_diffusion_infill.outcomes import Failure, FailureKind, Outcome
from dspy_diffusion_infill.usage import ModelUsage, Usage, added

logger = logging.getLogger(__name__)

_Tokens = Annotated[int, Field(ge=0, lt=2**53)]


@with_config(ConfigDict(extra="forbid"))
class _RunJson(TypedDict):
    """A line without score and failure is of a run that must be made again."""

    usage: list[tuple[str, _Tokens, _Tokens]]
    score: NotRequired[FiniteFloat]
    failure: NotRequired[tuple[str, FailureKind]]
    trace: NotRequired[Any]


_RUN = TypeAdapter(_RunJson)


class JournaledRuns:
    """What a journal knows of the runs of one evaluation. Several threads may use it.

    Attributes:
        about: what the evaluation is.
        num_rows: that it runs.
        known: how the rows ended, by number, whose runs the journal has.
        lost: what runs took, by row number, that must be made again.
    """

    def __init__(
        self,
        journal: Journal,
        key: str,
        num_rows: int,
        *,
        about: str,
        traces: TraceJson | None = None,
    ) -> None:
        """Reads the journal.

        Args:
            journal: of the search.
            key: of the evaluation.
            num_rows: that it runs.
            about: what each line says that it is.
            traces: how traces are written, where they are needed. A run whose trace cannot be
                written must be made again.

        Raises:
            DataError: a line is damaged.
        """
        self._journal, self._key, self._traces = journal, key, traces
        self.about, self.num_rows = about, num_rows
        self.known: dict[int, Outcome] = {}
        self.lost: dict[int, Usage] = {}
        for number in range(num_rows):
            found = journal.read(self._key_of(number), self._parsed)
            if found is None:
                continue
            if found.score is None and found.failure is None:
                self.lost[number] = found.usage
            else:
                self.known[number] = found
        self._failed = {n: one for n, one in self.known.items() if one.failure is not None}
        self._ended = set(self.known)
        self._is_given_up = self._has_warned = False

    @property
    def num_ended(self) -> int:
        """Rows whose runs have ended, those that the journal had included."""
        return len(self._ended)

    @property
    def failures(self) -> tuple[str, ...]:
        """What was raised so far, in words."""
        failures = [outcome.failure for outcome in list(self._failed.values())]
        return tuple(failure.text for failure in failures if failure is not None)

    def put(self, number: int, outcome: Outcome) -> None:
        """Writes how the run of a row ended.

        Raises:
            OSError: it cannot be written.
        """
        self._ended.add(number)
        if outcome.failure is not None:
            self._failed[number] = outcome
        usage = added(self.lost.get(number, ()), outcome.usage)
        value: dict[str, Any] = {
            "usage": [[one.model, one.prompt_tokens, one.completion_tokens] for one in usage]
        }
        if outcome.score is not None:
            value |= self._scored(outcome)
        elif outcome.failure is not None and not self._is_given_up:
            value["failure"] = [outcome.failure.text, outcome.failure.kind]
        self._journal.put(self._key_of(number), value, about=self.about)

    def give_up(self) -> None:
        """Has the next process make the runs again that failed, now or later."""
        self._is_given_up = True
        for number, outcome in list(self._failed.items()):
            self.put(number, outcome)

    def _scored(self, outcome: Outcome) -> dict[str, Any]:
        if self._traces is None:
            return {"score": outcome.score}
        trace = self._traces.written(outcome.trace or ())
        if trace is not None:
            return {"score": outcome.score, "trace": trace}
        if self._journal.path is not None and not self._has_warned:
            self._has_warned = True
            logger.warning("a step's values cannot be journaled: a resumed search runs them again")
        return {}

    def _parsed(self, value: Any) -> Outcome:
        run = _RUN.validate_python(value)
        usage = tuple(ModelUsage(*one) for one in run["usage"])
        if "failure" in run:
            return Outcome(None, failure=Failure(*run["failure"]), usage=usage)
        if self._traces is None or "score" not in run:
            return Outcome(run.get("score"), usage=usage)
        return Outcome(run["score"], self._traces.read(run.get("trace")), usage=usage)

    def _key_of(self, number: int) -> str:
        return f"{self._key} {number}"
