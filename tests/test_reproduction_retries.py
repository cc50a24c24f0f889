import copy

import dspy
import pytest
from dspy.utils.exceptions import LMError, LMRateLimitError
from loopback import RATE_LIMITED, loopback

from dspy_diffusion_infill.reproduction.retries import PatientLM, reason_of


def patient(url: str, seen: list[Exception], **options) -> PatientLM:
    options = {"cache": False, "temperature": 1.0, "max_tokens": 8, **options}
    return PatientLM(
        "openai/loopback", api_base=url, api_key="none", on_retry=seen.append, **options
    )


def test_a_call_is_sent_again_and_every_reason_is_told() -> None:
    answers, seen = [RATE_LIMITED, 503, "fine"], []
    with loopback(lambda number, _: answers[number]) as server:
        assert patient(server.url, seen)("one") == ["fine"]
    assert [reason_of(error) for error in seen] == ["HTTP 429", "HTTP 503"]
    assert len(server.bodies) == 3


def test_patience_ends() -> None:
    seen: list[Exception] = []
    with loopback(lambda *_: RATE_LIMITED) as server, pytest.raises(LMRateLimitError):
        patient(server.url, seen, num_retries=2)("one")
    assert len(server.bodies) == 3
    assert len(seen) == 2


def test_what_cannot_get_better_is_not_sent_again() -> None:
    seen: list[Exception] = []
    with loopback(lambda *_: 400) as server, pytest.raises(LMError):
        patient(server.url, seen)("one")
    assert len(server.bodies) == 1
    assert seen == []


def test_copies_and_programs_stay_patient() -> None:
    answers, seen = [RATE_LIMITED, "a", RATE_LIMITED, "b", RATE_LIMITED, "c"], []
    with loopback(lambda number, _: answers[number]) as server:
        lm = patient(server.url, seen)
        assert lm.copy(rollout_id=1)("one") == ["a"]
        assert copy.deepcopy(lm)("one") == ["b"]
        with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
            assert dspy.settings.lm("one") == ["c"]
    assert len(seen) == 3


def test_an_error_without_a_status_is_named_by_its_kind() -> None:
    assert reason_of(TimeoutError("no answer")) == "TimeoutError"
