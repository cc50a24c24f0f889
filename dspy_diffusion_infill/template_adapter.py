"""``TemplateAdapter``: the instructions are the whole prompt.

DSPy's own adapters wrap the instructions in a description of fields and markers
(``[[ ## answer ## ]]``). Judges are trained on one exact prompt, and small LMs cannot follow the
markers; for both the instructions are sent as they are::

    Write the plural form of the word.

    Input: {word}
    Output:
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from dspy import Signature
from dspy.adapters import Adapter
from dspy.adapters.types import History
from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER
from dspy.adapters.utils import (
    annotation_allows_none,
    apply_output_field_defaults,
    format_field_value,
    parse_value,
)
from dspy.signatures import infer_prefix
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError
from pydantic.fields import FieldInfo

from dspy_diffusion_infill.words import find_phrase

NOT_SUPPLIED = "Not supplied for this particular example."
"""What stands in a worked example for a field that it lacks (DSPy's own words)."""

_BLANK_LINE = re.compile(r"\n(?:[ \t]*\n)+")


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with placeholders in two parts.

    Attributes:
        head: what is said once: all paragraphs before the one with the first placeholder, and the
            blank line after them. Empty where the first paragraph has a placeholder.
        body: what is said for every example: the rest.
    """

    head: str
    body: str

    @property
    def text(self) -> str:
        """The whole prompt."""
        return self.head + self.body

    @property
    def ends_with_cue(self) -> bool:
        """Whether an answer goes on in the last line ("Output:")."""
        end = re.match(r"\W*", self.body[::-1])  # backwards: one pass, however many colons
        return end is not None and ":" in end[0]


class TemplateAdapter(Adapter):
    r"""Sends the instructions as the whole prompt, fields filled in, and parses the completion.

    **Placeholders.** ``{name}`` is one if ``name`` is an input field. All other braces stay as
    they are, so JSON needs no escaping. ``{{name}}`` is the text ``{name}``.

    **Plain instructions.** Input fields without a placeholder are added below as ``Name: value``
    lines, and after them the name of the first output field: "Classify the sentiment." with
    ``input -> output`` is sent as "Classify the sentiment.\n\nInput: …\nOutput:". With several
    output fields and no ``pattern``, the form of the reply is added too ("Reply in this form:",
    one ``Name: ...`` line a field).

    **Worked examples** (demos) follow the paragraphs before the first placeholder, which are said
    once; where there are none, each example is a user and an assistant turn::

        Write the plural form of the word.

        Input: dog
        Output: dogs

        Input: cat
        Output:

    **Parsing.** One output field takes the whole completion, stripped. Several are read from
    ``Name: …`` lines, or from the named groups of ``pattern``. A field typed ``Literal[...]``
    takes the first of its labels that the text names (``first_label``); other types are read as
    DSPy reads them.

    Args:
        pattern: a regular expression, searched in the completion; its named groups are output
            fields.
        response: with ``pattern``, how gold outputs are written in worked examples and contexts,
            such as ``"Feedback: {feedback} [RESULT] {score}"``.
        system: a system message to send before the prompt; None for none.
        callbacks: DSPy callbacks around ``format`` and ``parse``.

    Raises:
        ValueError: ``pattern`` has no named group.
    """

    def __init__(
        self,
        *,
        pattern: str | re.Pattern[str] | None = None,
        response: str | None = None,
        system: str | None = None,
        callbacks: list[BaseCallback] | None = None,
    ) -> None:
        super().__init__(callbacks=callbacks)
        self.pattern = re.compile(pattern) if pattern is not None else None
        if self.pattern is not None and not self.pattern.groupindex:
            raise ValueError(
                "pattern must have named groups, one an output field, such as (?P<score>[1-5]), "
                f"got {self.pattern.pattern!r}"
            )
        self.response = response
        self.system = system

    # What is sent

    def format(
        self, signature: type[Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The messages of one call, as dicts of ``role`` and ``content``.

        Demos without any input or any output are left out, as DSPy does.

        Raises:
            ValueError: an input field has no value or is no text, or ``pattern`` has no group for
                an output field.
        """
        self._check_pattern(signature)
        template = self.template(signature)
        fields = signature.input_fields
        examples = [
            (
                _filled(template.body, fields, demo, absent=NOT_SUPPLIED),
                self.format_assistant_message_content(signature, demo, NOT_SUPPLIED),
            )
            for demo in demos
            if fields.keys() & demo.keys() and signature.output_fields.keys() & demo.keys()
        ]
        prompt = _filled(template.body, fields, inputs)
        turns = []
        if template.head:
            joint = " " if template.ends_with_cue else "\n"
            blocks = [f"{question}{joint}{answer}" for question, answer in examples]
            prompt = _filled(template.head, fields, inputs) + "\n\n".join([*blocks, prompt])
        else:
            turns = [
                {"role": role, "content": content}
                for example in examples
                for role, content in zip(("user", "assistant"), example, strict=True)
            ]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *turns, {"role": "user", "content": prompt}]

    def template(self, signature: type[Signature]) -> Template:
        """The instructions, with the fields that they do not name added, cut in head and body."""
        instructions = signature.instructions.rstrip()
        placeholder = _placeholder(signature.input_fields)
        named = {found["field"] for found in placeholder.finditer(instructions)}
        text = instructions
        if missing := [name for name in signature.input_fields if name not in named]:
            text += self._added_text(signature, missing)
        first = next((m.start() for m in placeholder.finditer(text) if m["field"]), len(text))
        cut = max((m.end() for m in _BLANK_LINE.finditer(text) if m.end() <= first), default=0)
        return Template(head=text[:cut], body=text[cut:])

    def format_user_message_content(
        self,
        signature: type[Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """The given input fields as ``Name: value`` lines; the whole prompt for the main request.

        DSPy's ReAct writes its trajectory with this method.
        """
        if main_request:
            text = self.format(signature, [], inputs)[-1]["content"]
        else:
            text = "\n".join(
                f"{infer_prefix(name)}: {_value_text(name, field, inputs[name])}"
                for name, field in signature.input_fields.items()
                if name in inputs
            )
        return "\n\n".join(part for part in (prefix, text, suffix) if part)

    def format_assistant_message_content(
        self,
        signature: type[Signature],
        outputs: Mapping[str, Any],
        missing_field_message: str | None = None,
    ) -> str:
        """The response that gives ``outputs``, as it follows the prompt; ``parse`` reads it back.

        One output field is its value. Several are ``Name: value`` lines; the first name is left
        out if the prompt ends with it. Where ``response`` is given, it is filled in instead.

        An output that is not there is ``missing_field_message``. Without that it is left out, and
        the others keep their names: after a prompt that ends with "Reasoning:", an answer alone is
        ``Answer: 2``, not ``2``.

        Raises:
            ValueError: no output is there and no ``missing_field_message``, or ``pattern`` does not
                find the response, so that ``response`` is needed.
        """
        fields = signature.output_fields
        absent = [name for name in fields if name not in outputs]
        if missing_field_message is not None or len(absent) == len(fields):
            absent = []
        shape = self.response
        if shape is None:
            shape = self._lines(signature, [name for name in fields if name not in absent])
        values = {**outputs, **dict.fromkeys(absent, "")}
        text = _filled(shape, fields, values, absent=missing_field_message)
        if self.pattern is not None and self.pattern.search(text) is None:
            raise ValueError(
                f"pattern {self.pattern.pattern!r} does not find the gold response {text!r:.200}: "
                "give TemplateAdapter(response=...) a text with {field} placeholders that it finds"
            )
        return text

    def _lines(self, signature: type[Signature], names: Sequence[str]) -> str:
        """One ``Name: {name}`` line a field, without the first name if the prompt ends with it."""
        labels = [infer_prefix(name) for name in names]
        lines = "\n".join(f"{label}: {{{name}}}" for label, name in zip(labels, names, strict=True))
        body = self.template(signature).body
        if len(signature.output_fields) == 1 or re.search(rf"\b{labels[0]}\W*$", body):
            return lines.removeprefix(f"{labels[0]}: ")
        return lines

    def _added_text(self, signature: type[Signature], missing: Sequence[str]) -> str:
        labels = [infer_prefix(name) for name in signature.output_fields]
        form = ""
        if len(labels) > 1 and self.pattern is None:
            form = "\n\nReply in this form:\n" + "\n".join(f"{label}: ..." for label in labels)
        lines = [f"{infer_prefix(name)}: {{{name}}}" for name in missing]
        return f"{form}\n\n" + "\n".join([*lines, *(f"{label}:" for label in labels[:1])])

    def _check_pattern(self, signature: type[Signature]) -> None:
        for name, field in signature.output_fields.items():
            if self.pattern and name not in self.pattern.groupindex and field.is_required():
                raise ValueError(
                    f"pattern {self.pattern.pattern!r} has no group (?P<{name}>...) for the "
                    f"output field {name!r}"
                )

    # What comes back

    def parse(self, signature: type[Signature], completion: str) -> dict[str, Any]:
        """The output fields of a completion.

        Raises:
            AdapterParseError: a field is not found, or its text is no value of its type.
        """
        values: dict[str, Any] = {}
        try:
            for name, text in self._field_texts(signature, completion).items():
                values[name] = _parse_field(name, text, signature.output_fields[name])
            values = apply_output_field_defaults(signature, values)
            if absent := [name for name in signature.output_fields if name not in values]:
                raise ValueError(f"Nothing was found for {absent}.")
        except ValueError as error:
            raise AdapterParseError(
                adapter_name=type(self).__name__,
                # DSPy's annotations say otherwise; its own adapters pass a class and a dict too.
                signature=signature,  # pyright: ignore[reportArgumentType]
                lm_response=completion,
                message=str(error),
                parsed_result=values,  # pyright: ignore[reportArgumentType]
            ) from error
        return values

    def _field_texts(self, signature: type[Signature], completion: str) -> dict[str, str]:
        names = list(signature.output_fields)
        if self.pattern is not None:
            if (found := self.pattern.search(completion)) is None:
                raise ValueError(f"The pattern {self.pattern.pattern!r} was not found.")
            groups = {name: found[name] for name in names if name in self.pattern.groupindex}
            return {name: text.strip() for name, text in groups.items() if text is not None}
        if len(names) == 1:
            return {names[0]: completion.strip()} if completion.strip() else {}
        return _labelled_sections(completion, names)


def field_lines(text: str, signature: type[Signature]) -> str:
    """The lines of a template that show an example and say nothing of the task.

    These are the lines that hold a placeholder, a line that ends with a colon right above them, and
    the cue at the end ("Score:").
    """
    placeholder, lines = _placeholder(signature.input_fields), text.rstrip().splitlines()
    shows = [any(found["field"] for found in placeholder.finditer(line)) for line in lines]
    kept = [
        line
        for k, line in enumerate(lines)
        if shows[k] or not line.strip() or (line.endswith(":") and shows[k + 1 : k + 2] != [False])
    ]
    return _BLANK_LINE.sub("\n\n", "\n".join(kept)).strip("\n")


def first_label(text: str, labels: Sequence[Any]) -> Any:
    """The label that ``text`` names first, as whole words and in any case.

    Of labels that start at the same place the longest wins ("not the same" before "not"), then
    the one that is written in the same case. A number is not found in another (3 in 3.5).

    Raises:
        ValueError: no label is named.
    """
    hits = [
        (found.start(), -len(found[0]), found[0] != text_of, number)
        for number, label in enumerate(labels)
        if (found := find_phrase(text_of := str(label), text))
    ]
    if not hits:
        raise ValueError(f"{text!r:.200} names none of {[str(label) for label in labels]}.")
    return labels[min(hits)[-1]]


def _placeholder(fields: Mapping[str, FieldInfo]) -> re.Pattern[str]:
    names = "|".join(map(re.escape, fields)) or r"(?!)"
    return re.compile(rf"\{{\{{(?P<escaped>{names})\}}\}}|\{{(?P<field>{names})\}}")


def _filled(
    template: str,
    fields: Mapping[str, FieldInfo],
    values: Mapping[str, Any],
    *,
    absent: str | None = None,
) -> str:
    """The template with values in place of its placeholders; ``absent`` stands for missing ones."""

    def fill(found: re.Match[str]) -> str:
        name = found["field"]
        if name is None:
            return f"{{{found['escaped']}}}"
        if absent is not None and values.get(name) is None:
            return absent
        if name not in values:
            raise ValueError(f"field {name!r} has no value: got values for {sorted(values)}")
        return _value_text(name, fields[name], values[name])

    return _placeholder(fields).sub(fill, template)


def _value_text(name: str, field: FieldInfo, value: Any) -> str:
    """The value as DSPy writes it.

    Raises:
        ValueError: the value is None and may not be, a conversation, or no text (an image).
    """
    if value is None and not annotation_allows_none(field.annotation):
        raise ValueError(f"field {name!r} has no value: got None")
    text = str(format_field_value(field, value))
    if isinstance(value, History) or CUSTOM_TYPE_START_IDENTIFIER in text:
        raise ValueError(
            f"field {name!r} holds a {type(value).__name__}, and TemplateAdapter sends text only: "
            "use dspy.ChatAdapter"
        )
    return text


def _parse_field(name: str, text: str, field: FieldInfo) -> Any:
    try:
        if get_origin(field.annotation) is Literal:
            return first_label(text, get_args(field.annotation))
        return parse_value(text, field.annotation)
    except ValueError as error:
        raise ValueError(f"Field {name!r}: {error}") from error


def _labelled_sections(completion: str, names: Sequence[str]) -> dict[str, str]:
    """The text after each ``Name:`` that starts a line; what precedes them is the first field's.

    Of two lines with one name the first counts: small LMs go on with examples of their own.
    """
    by_label = {infer_prefix(name).lower(): name for name in names}
    labels = "|".join(map(re.escape, by_label))
    line = re.compile(rf"^[ \t*#]*({labels})[ \t*]*:[ \t*]*", re.IGNORECASE | re.MULTILINE)
    marks = list(line.finditer(completion))
    ends = [*(mark.start() for mark in marks), len(completion)]
    sections: dict[str, str] = {}
    if before := completion[: ends[0]].strip():
        sections[names[0]] = before
    for mark, end in zip(marks, ends[1:], strict=True):
        sections.setdefault(by_label[mark[1].lower()], completion[mark.end() : end].strip())
    return sections
