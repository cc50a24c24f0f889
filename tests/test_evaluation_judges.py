import json

import dspy
import pytest
from loopback import RATE_LIMITED, loopback, prompt_of

from dspy_diffusion_infill.evaluation.judges import (
    ClosenessMetric,
    Judge,
    JudgeCounts,
    prometheus,
    prometheus_lm,
    total_counts,
)

SUMMARY = {"source": "It rained.", "reference": "Rain fell.", "system_output": "Rain."}


def script(*answers):
    return lambda number, body: answers[min(number, len(answers) - 1)]


def judged(judge: Judge, *answers, **options):
    with loopback(script(*answers)) as server, dspy.context(lm=server.lm(**options)):
        return judge(**SUMMARY), server


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("The summary is short but right.", "no score"),
        ("", "empty"),
        ("[RESULT] 7", "out of range"),
    ],
)
def test_an_unreadable_verdict_is_counted_and_never_scored(answer: str, problem: str) -> None:
    found, server = judged(Judge("c_gen", retries=2), answer)
    assert found.score is None
    assert found.scores == ()
    assert found.counts == JudgeCounts(runs=1, read=0, retries=2, problems=((problem, 3),))
    assert found.counts.unreadable == 1
    assert len(server.bodies) == 3


def test_decimals_are_read() -> None:
    found, _ = judged(Judge("c_gen"), "It is good. [RESULT] 4.2")
    assert found.score == 4.2
    assert found.verdict == "It is good. [RESULT] 4.2"


def test_an_unreadable_verdict_is_asked_for_again() -> None:
    found, server = judged(Judge("c_gen", retries=2), "Well.", "[RESULT] 7", "[RESULT] 3")
    assert found.score == 3
    assert found.counts == JudgeCounts(1, 1, 2, (("no score", 1), ("out of range", 1)))
    assert len(server.bodies) == 3


def test_a_rate_limit_is_waited_out() -> None:
    found, server = judged(Judge("c_gen"), RATE_LIMITED, "[RESULT] 4")
    assert found.score == 4
    assert found.counts.retries == 0
    assert len(server.bodies) == 2


def test_runs_are_averaged_over_the_readable_ones() -> None:
    judge = Judge("c_gen", runs=3, retries=0)
    found, server = judged(judge, "[RESULT] 2", "hm", "[RESULT] 5")
    assert found.scores == (2, 5)
    assert found.score == 3.5
    assert found.counts == JudgeCounts(3, 2, 0, (("no score", 1),))
    assert len(server.bodies) == 3


def test_every_sample_is_fresh_under_dspys_cache() -> None:
    judge = Judge("c_gen", runs=2, retries=1)
    answers = ["hm", "[RESULT] 2", "[RESULT] 4"]
    dspy.cache.reset_memory_cache()
    found, server = judged(judge, *answers, cache=True, model_type="chat", user="fresh-samples")
    assert found.score == 3
    assert len(server.bodies) == 3
    assert all("rollout_id" not in body for body in server.bodies)


def test_another_seed_is_another_sample() -> None:
    ids = []

    class Recorder(dspy.Predict):
        def forward(self, **kwargs):
            ids.append(kwargs["config"].get("rollout_id"))
            return dspy.Prediction(verdict="hm")

    for seed in (0, 1):
        judge = Judge("c_gen", runs=2, retries=1, seed=seed)
        judge.judge = Recorder(judge.judge.signature)
        judge(**SUMMARY)
    assert len(set(ids)) == 8


def test_after_a_cue_a_bare_number_is_a_verdict() -> None:
    assert judged(Judge("g_eval"), "4")[0].score == 4
    assert judged(Judge("c_gen", retries=0), "4")[0].score is None


def test_prometheus_sends_its_system_text_and_sampling() -> None:
    row = {name: name.upper() for name in Judge("judge_v2").template.fields}
    with loopback(script("Good. [RESULT] 4")) as server:
        lm = prometheus_lm(2, api_base=server.url).copy(cache=False)
        with dspy.context(lm=lm):
            found = prometheus(2, runs=1)(**row)
    assert found.score == 4
    (body,) = server.bodies
    assert body["messages"][0]["role"] == "system"
    assert "fair judge assistant" in json.dumps(body["messages"][0])
    assert prompt_of(body).endswith("Score 5: ORIG_SCORE5_DESCRIPTION\n\n###Feedback:")
    sampling = {key: body[key] for key in ("temperature", "top_p", "repetition_penalty")}
    assert sampling == {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.03}


def test_the_adapter_is_the_judges_own_whatever_is_configured() -> None:
    with dspy.context(adapter=dspy.JSONAdapter()):
        _, server = judged(Judge("c_gen"), "[RESULT] 3")
    assert prompt_of(server.bodies[0]).startswith("Please evaluate the following summary")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 0}, "runs must be at least 1"),
        ({"retries": -1}, "retries at least 0"),
        ({"low": 5, "high": 5}, "low must be below high"),
        ({"template": "geval"}, "template must be one of"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Judge(**options)
    with pytest.raises(ValueError, match="versions 1 and 2"):
        prometheus(3)  # pyright: ignore[reportArgumentType]


def test_closeness_is_one_at_the_human_score_and_zero_for_an_unreadable_verdict() -> None:
    metric, example = ClosenessMetric(), dspy.Example(score=4.0)
    assert metric(example, dspy.Prediction(score=4.0)) == 1
    assert metric(example, dspy.Prediction(score=2.0)) == 0.5
    assert metric(example, dspy.Prediction(score=None)) == 0


def test_counts_add_up() -> None:
    first = JudgeCounts(3, 2, 1, (("empty", 2),))
    second = JudgeCounts(1, 1, 0, ())
    assert total_counts([first, second]) == JudgeCounts(4, 3, 1, (("empty", 2),))
    assert total_counts([]).runs == 0
