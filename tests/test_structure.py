import pytest

from dspy_diffusion_infill.structure import find_structure


def found(text: str, kind: str) -> list[str]:
    return [text[start:end] for one, start, end in find_structure(text) if one == kind]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("within 5 km or 10–20 m", ["5 km", "10–20 m"]),
        ("20 % off, 3.5GB, 10 ms", ["20 %", "3.5GB", "10 ms"]),
        (
            "$5, US$5 million, € 3,50, USD 30 or 30 EUR",
            ["$5", "US$5 million", "€ 3,50", "USD 30", "30 EUR"],
        ),
        ("a 10-minute walk in 2 Hours", ["10-minute", "2 Hours"]),
        ("at -5 °C and 1.5 km/h", ["-5 °C", "1.5 km/h"]),
        ("约5公里的路", ["5公里"]),
        ("Use at most 3 sentences and 20 words.", []),
        ("Score it from 1 to 5. Give 5 A grades in 2 steps, 3 of 4.", []),
        ("the 1990s, step 2 in v1.5 of 5 Moons", []),
    ],
)
def test_numbers_are_structure_where_a_unit_stands_beside_them(text, numbers):
    assert found(text, "number") == numbers


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        (
            "See https://a.b/c_(d), or (http://x.y/z?q=1). End",
            ["https://a.b/c_(d)", "http://x.y/z?q=1"],
        ),
        ("请看https://a.b/c。然后", ["https://a.b/c"]),
        ("[here](www.a.org/b) and a.b", ["www.a.org/b"]),
    ],
)
def test_addresses_end_where_the_sentence_goes_on(text, urls):
    assert found(text, "url") == urls


def test_tags_are_structure_and_comparisons_are_not():
    text = 'Put <user_input>it</user_input> <br/> in <a href="x y">, if a < b and c > d or <1-5>'
    tags = ["<user_input>", "</user_input>", "<br/>", '<a href="x y">']
    assert found(text, "tag") == tags


def test_json_is_what_json_can_read():
    text = 'As {"a": {"b": [1]}}, ["x"] or [[1, 2], [3]]; not [x], {b}, [] or {"c": <1-5>}'
    assert found(text, "json") == ['{"a": {"b": [1]}}', '["x"]', "[[1, 2], [3]]"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_code_and_tables_are_found_by_line_whatever_ends_it(end):
    code = end.join(["```python", "x = 1", "```", ""])
    table = end.join(["| a | b |", "|---|---|", "| 1 | 2 |", ""])
    text = end.join(["Do it:", code, "Then:", "", table, "and a | b, `c`"])
    assert found(text, "code") == [code]
    assert found(text, "table") == [table]


def test_code_is_found_in_lists_between_tags_and_indented():
    text = "<example>\n```\na\n```\n</example>\n- one\n  ```\n  b\n  ```\n"
    text += "\n      ```\n      c\n      ```"
    assert [part.split("\n")[1].strip() for part in found(text, "code")] == ["a", "b", "c"]


def test_a_fence_that_is_never_closed_goes_to_the_end():
    assert found("Say:\n```\nx\ny", "code") == ["```\nx\ny"]


@pytest.mark.parametrize(
    "text", ["[" * 9000, '{"a":' * 3000, "<a " * 3000, "1," * 3000, "|a" * 900]
)
def test_endless_openings_are_no_structure(text):
    assert list(find_structure(text)) == []
