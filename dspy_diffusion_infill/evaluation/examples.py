"""One row of each data set as a ``dspy.Example``."""

from collections.abc import Iterator
from dataclasses import replace

import dspy

from dspy_diffusion_infill.evaluation.gsm8k import gsm8k_answer
from dspy_diffusion_infill.evaluation.rows import Record
from dspy_diffusion_infill.evaluation.templates import summeval_rubric

FEEDBACK_FIELDS = (
    "orig_instruction",
    "orig_response",
    "orig_reference_answer",
    "orig_criteria",
    *(f"orig_score{k}_description" for k in range(1, 6)),
)
SUMMARY_FIELDS = ("source", "reference", "system_output")
DIMENSIONS = ("coherence", "consistency", "fluency", "relevance")
HOVER_LABELS = ("NOT_SUPPORTED", "SUPPORTED")

_SUMMARIZE = "Write a summary of the following article.\n\n{source}"
_MISSING_SCORE = -1.0


def feedback_example(row: Record) -> dspy.Example:
    """A Feedback Collection row: its nine texts, ``score`` and ``feedback``."""
    texts = {name: row.text(name, may_be_empty=True) for name in FEEDBACK_FIELDS}
    score = row.number_of("orig_score", low=1, high=5)
    feedback = row.text("orig_feedback", may_be_empty=True)
    example = dspy.Example(**texts, score=score, feedback=feedback)
    return example.with_inputs(*FEEDBACK_FIELDS)


def summary_examples(documents: list[Record], outputs: list[Record]) -> list[dspy.Example]:
    """SummEval as two files: articles (``docs.jsonl``) and scored summaries (``outputs.jsonl``)."""
    articles: dict[str, tuple[str, str]] = {}
    for row in documents:
        references = row.items("references")
        if not references or not isinstance(references[0], str):
            raise row.error("references", "must hold at least one text")
        articles[row.text("doc_id")] = row.text("source"), references[0]
    examples = []
    for row in outputs:
        name = row.text("doc_id")
        if name not in articles:
            raise row.error("doc_id", f"names no article: {name!r}")
        scores = row.inner("scores")
        four = {key: scores.number_of(f"scores.{key}", low=1, high=5) for key in DIMENSIONS}
        system, output = row.text("system_id"), row.text("system_output", may_be_empty=True)
        source, reference = articles[name]
        examples.append(summary_example(name, system, source, reference, output, four))
    return examples


def article_examples(row: Record) -> Iterator[dspy.Example]:
    """SummEval as the hub has it: one article a row, with lists over 16 systems.

    The hub's copy has no system names: their place in the list stands for them.
    """
    outputs, references = row.items("machine_summaries"), row.items("human_summaries")
    lists = {key: row.items(key) for key in DIMENSIONS}
    for key, values in lists.items():
        if len(values) != len(outputs):
            raise row.error(key, f"must have {len(outputs)} scores, got {len(values)}")
    if not references:
        raise row.error("human_summaries", "must hold at least one text")
    for place, output in enumerate(outputs):
        texts = {"machine_summaries": output, "human_summaries": references[0]}
        one = replace(row, values={**texts, **{key: lists[key][place] for key in DIMENSIONS}})
        yield summary_example(
            row.text("id"),
            f"system {place}",
            row.text("text"),
            one.text("human_summaries"),
            one.text("machine_summaries", may_be_empty=True),
            {key: one.number_of(key, low=1, high=5) for key in DIMENSIONS},
        )


def summary_example(
    doc_id: str,
    system_id: str,
    source: str,
    reference: str,
    output: str,
    scores: dict[str, float],
) -> dspy.Example:
    """One summary with its human scores; ``score`` is overall quality, the mean of the four."""
    overall = sum(scores[key] for key in DIMENSIONS) / len(DIMENSIONS)
    texts = {"source": source, "reference": reference, "system_output": output}
    example = dspy.Example(
        **texts, **scores, score=overall, overall=overall, doc_id=doc_id, system_id=system_id
    )
    return example.with_inputs(*SUMMARY_FIELDS)


def biggen_example(row: Record) -> dspy.Example | None:
    """A BiGGen-Bench response with its human score; None where that is -1, which means missing."""
    score = row.number_of("human_score", low=-1, high=5)
    if score == _MISSING_SCORE:
        return None
    if score < 1:
        raise row.error("human_score", f"must be -1 (missing) or in 1..5, got {score:g}")
    texts = biggen_texts(row, row.text("response", may_be_empty=True))
    system = row.text("model_name")
    example = dspy.Example(**texts, score=score, doc_id=row.text("id"), system_id=system)
    return example.with_inputs(*FEEDBACK_FIELDS)


def constructed_examples(rows: list[Record]) -> Iterator[dspy.Example]:
    """Pairs with constructed scores, where only BiGGen-Bench's tasks are at hand.

    A task's own reference answer stands for a response worth 5, the next task's for one worth 1. No
    human has seen them: they are for trying the machinery out, not for measuring anything.
    """
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        for giver, score in ((row, 5.0), (other, 1.0)):
            texts = biggen_texts(row, giver.text("reference_answer"))
            system = "own reference" if giver is row else "other reference"
            example = dspy.Example(**texts, score=score, doc_id=row.text("id"), system_id=system)
            yield example.with_inputs(*FEEDBACK_FIELDS)


def biggen_texts(row: Record, response: str) -> dict[str, str]:
    """The nine texts of a judge's prompt, from a BiGGen-Bench task and a response to it."""
    rubric = row.inner("score_rubric")
    return {
        "orig_instruction": row.text("input"),
        "orig_response": response,
        "orig_reference_answer": row.text("reference_answer"),
        "orig_criteria": rubric.text("score_rubric.criteria"),
        **{
            f"orig_score{k}_description": rubric.text(f"score_rubric.score{k}_description")
            for k in range(1, 6)
        },
    }


def gsm8k_example(row: Record) -> dspy.Example:
    """A GSM8K problem with its worked solution; ``number`` is the gold answer."""
    question, answer = row.text("question"), row.text("answer")
    number = gsm8k_answer(answer)
    if number is None:
        raise row.error("answer", "has no number after '#### '")
    return dspy.Example(question=question, answer=answer, number=number).with_inputs("question")


def hover_example(row: Record) -> dspy.Example:
    """A HoVer claim: ``titles`` of its gold pages, in order, and ``label``."""
    titles = [_title(row, fact) for fact in row.items("supporting_facts")]
    if not titles:
        raise row.error("supporting_facts", "is empty")
    label = row.get("label", (str, int), "a label")
    if label in (0, 1):
        label = HOVER_LABELS[int(label)]
    if label not in HOVER_LABELS:
        raise row.error("label", f"must be 0, 1 or one of {HOVER_LABELS}, got {label!r}")
    gold = tuple(dict.fromkeys(titles))
    return dspy.Example(claim=row.text("claim"), titles=gold, label=label).with_inputs("claim")


def as_feedback(example: dspy.Example) -> dspy.Example:
    """A SummEval example in Feedback Collection's fields.

    The criterion is the paper's (appendix J.3); instruction and score descriptions are ours.
    """
    texts = {
        "orig_instruction": _SUMMARIZE.format(source=example.source),
        "orig_response": example.system_output,
        "orig_reference_answer": example.reference,
        **summeval_rubric(),
    }
    return dspy.Example(example, **texts).with_inputs(*FEEDBACK_FIELDS)


def _title(row: Record, fact: object) -> str:
    """``{key, value}`` on the hub, ``[title, sentence]`` in HoVer's own files."""
    title = fact.get("key") if isinstance(fact, dict) else None
    if isinstance(fact, list) and fact:
        title = fact[0]
    if not isinstance(title, str) or not title:
        raise row.error("supporting_facts", f"must hold {{key, value}} or [title, n], got {fact!r}")
    return title
