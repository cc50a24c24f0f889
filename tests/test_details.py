from dspy_diffusion_infill.infiller.details import find_details


def details(*texts: str) -> list[tuple[str, str]]:
    return [one for own in find_details(texts) for one in own]


def test_mails_numbers_and_codes_are_found():
    text = (
        "write to a.b@c-d.org or call +49 170 555-1234 about 1,200 of x7f3a9 in 2024, not 12 or 5th"
    )
    assert details(text) == [
        ("mail", "a.b@c-d.org"),
        ("number", "+49 170 555-1234"),
        ("number", "1,200"),
        ("number", "2024"),
        ("code", "x7f3a9"),
    ]


def test_names_stand_inside_of_sentences_or_in_a_row():
    text = "The order of Zwiebel was late. Maria Gonzalez said so to us. Then we left it. Bob too."
    assert details(text, "we sent the order then") == [
        ("name", "Zwiebel"),
        ("name", "Maria Gonzalez"),
        ("name", "Maria"),
        ("name", "Gonzalez"),
    ]


def test_a_word_that_is_also_written_small_is_no_name():
    assert details("we went to the Market at noon", "a market is a place") == []


def test_capitals_of_nouns_are_no_names():
    text = "Die Katze sitzt auf der Matte und die Maus liegt im Garten bei Anna Schmidt"
    assert details(text) == [("name", "Anna Schmidt")]
