"""Many ways to say one small task: short or long, with and without a rule of format."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

FRAMES = (  # of a verb phrase
    "{Act}.",
    "{Act}.",
    "{Act} for each input.",
    "Please {act}.",
    "Your task is to {act}.",
    "Your job is to {act}.",
    "I want you to {act}.",
    "Read the input and {act}.",
    "For each input, {act}.",
    "For every example, {act}.",
    "Can you {act}?",
    "Task: {act}.",
    "Instruction: {act}.",
    "The task is to {act}.",
    "Look at the input and {act}.",
    "Follow the examples and {act}.",
    "We need to {act}.",
)
FRAMES_IN = (  # of what is given and a verb phrase
    "Given {in}, {act}.",
    "Given {in}, {act}.",
    "You will be given {in}. {Act}.",
    "You are given {in}. {Act}.",
    "You get {in}. {Act}.",
    "The input is {in}. {Act}.",
    "Each input is {in}. {Act}.",
    "I will give you {in}. {Act}.",
    "I'll give you {in} and you {act}.",
    "In this task, you will see {in}. {Act}.",
    "Take {in} and {act}.",
    "When you see {in}, {act}.",
    "Your input is {in}. Please {act}.",
    "You will receive {in}; {act}.",
)
FRAMES_OUT = (  # of a noun phrase for the answer
    "Write {out}.",
    "Output {out}.",
    "Give {out}.",
    "Return {out}.",
    "Answer with {out}.",
    "Reply with {out}.",
    "Tell me {out}.",
    "What is {out}?",
    "The output is {out}.",
    "The answer should be {out}.",
    "For each input, write {out}.",
    "For each input, give {out}.",
    "Find {out}.",
    "Provide {out}.",
    "Generate {out}.",
)
FRAMES_WHETHER = (  # of a clause ("whether the number is even")
    "Say {out}.",
    "Tell me {out}.",
    "Decide {out}.",
    "Write {out}.",
    "Determine {out}.",
    "For each input, say {out}.",
    "Given {in}, say {out}.",
    "You will be given {in}. Find out {out}.",
    "The input is {in}. The output says {out}.",
)
FRAMES_BOTH = (  # of what is given and a noun phrase for the answer
    "Given {in}, output {out}.",
    "Given {in}, write {out}.",
    "Given {in}, return {out}.",
    "You will be given {in}. Write {out}.",
    "The input is {in}. The output is {out}.",
    "The input is {in}; the output should be {out}.",
    "You are given {in}. Answer with {out}.",
    "For {in}, give {out}.",
    "I give you {in}, you give me {out}.",
    "Input: {in}. Output: {out}.",
    "Read {in} and reply with {out}.",
)
LONG = (
    "{role} You will be given {in}. Your task is to {act}. {rule}",
    "{role} In each line you see {in}. {Act}. {rule} Do not explain your answer.",
    "{role} {Act}. Think about what {out} is before you answer. {rule}",
    "In this task you are given {in}. You have to {act}. {rule} Do not write anything else.",
    "Below are some examples of a task. The input is {in} and the output is {out}. {rule}",
    "{role} Please read the input carefully. It is {in}. Then {act}. {rule}",
    "{role} The user sends you {in}. You reply with {out}. {rule} No explanation is needed.",
    "I am going to show you {in}. I want you to {act}. {rule} Keep the format of the examples.",
    "{role} Given {in}, {act}. Be precise. {rule}",
    "You are given {in}. Your goal is to produce {out}. {rule} If in doubt, give your best guess.",
)
ROLES = (
    "You are a helpful assistant.",
    "You are a careful assistant.",
    "You are an expert.",
    "You are a precise system that follows instructions.",
    "You are an AI that answers short questions.",
    "You are a patient teacher.",
)
RULES = (
    "Answer only with the result.",
    "Write only the answer.",
    "Only output the answer.",
    "Do not explain.",
    "Give the answer and nothing else.",
    "Keep the answer short.",
    "No extra words.",
    "Output the answer only.",
)
ONE_WORD = ("Answer with one word.", "Use one word.", "Reply with a single word.", "One word only.")
NUMBER = (
    "Answer with a number.",
    "Give only the number.",
    "Write the number in digits.",
    "Output a number.",
)
LABEL_RULES = (
    "Answer with {or}.",
    "Answer only with {or}.",
    "Options: {list}.",
    "Options: {list}",
    "Choose from: {list}.",
    "The possible answers are {and}.",
    "Respond with exactly one of these labels: {list}.",
    "Use one of these labels: {list}.",
    "The output must be {or}.",
    "Write {or}.",
    "Say {or}.",
    "Labels: {slash}",
    "({slash})",
)


@dataclass(frozen=True, slots=True)
class Wording:
    """What is known about how to word a task.

    Attributes:
        plain: whole instructions as people word them who were shown some examples only.
        says: whole instructions, written by hand, in many styles.
        acts: verb phrases without a final stop ("name the capital of the country").
        inputs: noun phrases with their article ("a country").
        outputs: noun phrases ("its capital").
        rules: about the form of the answer; "one word" and "number" stand for common ones.
        roles: sentences about who answers.
        labels: the possible answers where they are few.
    """

    plain: tuple[str, ...]
    says: tuple[str, ...]
    acts: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rules: tuple[str, ...]
    roles: tuple[str, ...]
    labels: tuple[str, ...]


def wordings(wording: Wording, rng: random.Random, *, num_plain: int, num_others: int) -> list[str]:
    """Different instructions: so many plain ones, if there are, and so many in other styles.

    Of the others, one in six is long, and the rest are written by hand or from frames.
    """
    found = dict.fromkeys(wording.plain[:num_plain])
    count = len(found) + num_others
    num_long = max(1, round(num_others / 6 + rng.uniform(-0.4, 0.4)))
    says = rng.sample(wording.says, min(num_others - num_long, len(wording.says)))
    found.update(dict.fromkeys(_with_rule(text, wording, rng) for text in says))
    while len(found) < count - num_long:
        found.setdefault(_with_rule(_short(wording, rng), wording, rng))
    while len(found) < count:
        found.setdefault(_fill(rng.choice(LONG), wording, rng))
    return list(found)


def _short(wording: Wording, rng: random.Random) -> str:
    frames = rng.choices((FRAMES, FRAMES_IN, FRAMES_OUT, FRAMES_BOTH), weights=(4, 3, 3, 2))[0]
    out = rng.choice(wording.outputs)
    if out.startswith(("whether", "how ")) and frames in (FRAMES_OUT, FRAMES_BOTH):
        frames = FRAMES_WHETHER
    return _fill(rng.choice(frames), wording, rng, out=out)


def _fill(frame: str, wording: Wording, rng: random.Random, *, out: str = "") -> str:
    act = rng.choice(wording.acts)
    rule = _rule(wording, rng)
    out = out or rng.choice(
        [x for x in wording.outputs if not x.startswith("whether")] or ["the answer"]
    )
    values = {
        "act": act,
        "Act": act[0].upper() + act[1:],
        "in": rng.choice(wording.inputs),
        "out": out,
        "role": rng.choice([*ROLES, *wording.roles * 4]),
        "rule": rule if rule[-1] in ".)" else f"{rule}.",
    }
    return frame.format_map(values)


def _with_rule(text: str, wording: Wording, rng: random.Random) -> str:
    """Adds a rule of format: more often where there are labels and the text names none."""
    names_labels = bool(wording.labels) and all(
        label.lower() in text.lower() for label in wording.labels
    )
    share = 0.15 if names_labels else 0.55 if wording.labels else 0.3
    return f"{text} {_rule(wording, rng)}" if rng.random() < share else text


def _rule(wording: Wording, rng: random.Random) -> str:
    if 1 < len(wording.labels) <= 8 and rng.random() < 0.85:
        return rng.choice(LABEL_RULES).format_map(_joined(wording.labels))
    common = {"one word": ONE_WORD, "number": NUMBER}
    own = [text for rule in wording.rules for text in common.get(rule, (rule,))]
    return rng.choice(own) if own and rng.random() < 0.7 else rng.choice(RULES)


def _joined(labels: Sequence[str]) -> dict[str, str]:
    head, last = ", ".join(labels[:-1]), labels[-1]
    joined = {"or": f"{head} or {last}", "and": f"{head} and {last}"}
    return {**joined, "list": ", ".join(labels), "slash": "/".join(labels)}
