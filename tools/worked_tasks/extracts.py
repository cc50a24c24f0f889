"""Examples of tasks that take something out of a text: each function makes one (input, answer).

Which instruction goes with a function stands in ``data/tasks_*.txt`` (``from: code NAME``).
"""

import json
import random
import re

from tools.worked_tasks.registry import Registry
from tools.worked_tasks.strings import SENTENCES, WORDS, read_list

EXTRACTS = Registry()

NAMES = tuple(read_list("names.txt").split())
SURNAMES = tuple(read_list("surnames.txt").split())
CITIES = tuple(read_list("cities.txt").strip().split(", "))


def _words(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(WORDS, rng.randint(low, high))


@EXTRACTS
def _in_brackets(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 4, 6)
    k = rng.randrange(len(words))
    return " ".join([*words[:k], f"({words[k]})", *words[k + 1 :]]), words[k]


@EXTRACTS
def _hashtags(rng: random.Random) -> tuple[str, str]:
    tag = rng.choice(WORDS)
    sentence = rng.choice(SENTENCES)
    return f"{sentence} #{tag}", f"#{tag}"


@EXTRACTS
def _make_hashtag(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 2, 3)
    return " ".join(words), "#" + "".join(word.capitalize() for word in words)


@EXTRACTS
def _full_name(rng: random.Random) -> tuple[str, str]:
    given, family = rng.choice(NAMES), rng.choice(SURNAMES)
    return f"{family}, {given}", f"{given} {family}"


@EXTRACTS
def _surname(rng: random.Random) -> tuple[str, str]:
    given, family = rng.choice(NAMES), rng.choice(SURNAMES)
    return f"{given} {family}", family


@EXTRACTS
def _initials(rng: random.Random) -> tuple[str, str]:
    given, family = rng.choice(NAMES), rng.choice(SURNAMES)
    return f"{given} {family}", f"{given[0]}.{family[0]}."


@EXTRACTS
def _email_user(rng: random.Random) -> tuple[str, str]:
    user = f"{rng.choice(NAMES)}.{rng.choice(SURNAMES)}".lower()
    return f"{user}@{rng.choice(WORDS)}.com", user


@EXTRACTS
def _email_domain(rng: random.Random) -> tuple[str, str]:
    domain = f"{rng.choice(WORDS)}.{rng.choice(['com', 'org', 'net'])}"
    return f"{rng.choice(NAMES).lower()}@{domain}", domain


@EXTRACTS
def _extract_email(rng: random.Random) -> tuple[str, str]:
    address = f"{rng.choice(NAMES).lower()}@{rng.choice(WORDS)}.com"
    frames = (
        "Please write to {} for details.",
        "You can reach me at {}.",
        "Send the form to {} by Friday.",
    )
    return rng.choice([*frames, "My address is {}, thanks.", "Contact {} if it fails."]).format(
        address
    ), address


@EXTRACTS
def _extract_name(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(NAMES)
    frames = (
        "Yesterday {} bought a new bike.",
        "The prize goes to {} this year.",
        "I saw {} at the station.",
    )
    more = (
        "Could you ask {} about the keys?",
        "My neighbour {} grows tomatoes.",
        "{} will call you tomorrow.",
    )
    return rng.choice([*frames, *more, "We had dinner with {} last night."]).format(name), name


@EXTRACTS
def _extract_city(rng: random.Random) -> tuple[str, str]:
    city = rng.choice(CITIES)
    frames = (
        "We flew to {} in May.",
        "The office in {} is closed.",
        "She was born in {} and still lives there.",
    )
    more = (
        "The train to {} was late.",
        "I have never been to {}.",
        "Hotels in {} are full this week.",
    )
    return rng.choice([*frames, *more, "My cousin studies in {}."]).format(city), city


@EXTRACTS
def _extract_number(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(2, 99)
    frames = (
        "There are {} chairs in the hall.",
        "He ran {} miles on Sunday.",
        "The box holds {} bottles.",
    )
    more = ("She sold {} tickets.", "Our bus is number {}.", "It took {} minutes to get there.")
    return rng.choice([*frames, *more, "The recipe needs {} grams of sugar."]).format(n), str(n)


@EXTRACTS
def _extract_price(rng: random.Random) -> tuple[str, str]:
    price = f"${rng.randint(2, 99)}.{rng.choice(['00', '50', '99', '25'])}"
    frames = (
        "The lamp costs {} in the shop.",
        "I paid {} for two tickets.",
        "It was {} last week.",
    )
    more = ("Lunch came to {} with a drink.", "They want {} for the old radio.", "You owe me {}.")
    return rng.choice([*frames, *more]).format(price), price


@EXTRACTS
def _extract_date(rng: random.Random) -> tuple[str, str]:
    months = ("January", "March", "April", "June", "August", "October", "December")
    date = f"{rng.randint(1, 28)} {rng.choice(months)}"
    frames = ("The meeting is on {} in room 4.", "Her birthday is {}.", "Please pay before {}.")
    more = (
        "The course starts on {} and lasts a week.",
        "We arrived on {}.",
        "The shop opens again on {}.",
    )
    return rng.choice([*frames, *more]).format(date), date


@EXTRACTS
def _extract_time(rng: random.Random) -> tuple[str, str]:
    time = f"{rng.randint(1, 12)}:{rng.choice(['00', '15', '30', '45'])}"
    frames = (
        "The film starts at {} tonight.",
        "Wake me up at {}, please.",
        "Our train leaves at {}.",
    )
    more = (
        "The doctor can see you at {}.",
        "School ends at {} on Fridays.",
        "Be at the gate by {}.",
    )
    return rng.choice([*frames, *more]).format(time), time


@EXTRACTS
def _extract_colour(rng: random.Random) -> tuple[str, str]:
    colour = rng.choice(
        ["red", "blue", "green", "yellow", "black", "white", "brown", "pink", "grey", "purple"]
    )
    thing = rng.choice(["coat", "car", "bag", "door", "hat", "boat", "cup"])
    frames = (
        "She lost her {} {} at the station.",
        "The {} {} belongs to my aunt.",
        "He wants a {} {}.",
    )
    return rng.choice([*frames, "Where did you put the {} {}?"]).format(colour, thing), colour


@EXTRACTS
def _digits_only(rng: random.Random) -> tuple[str, str]:
    text = f"{rng.choice(WORDS)[:3]}{rng.randint(10, 99)}{rng.choice(WORDS)[:3]}{rng.randint(1, 9)}"
    return text, re.sub(r"\D", "", text)


@EXTRACTS
def _json_name(rng: random.Random) -> tuple[str, str]:
    record = {"id": rng.randint(1, 99), "name": rng.choice(NAMES), "city": rng.choice(CITIES)}
    return json.dumps(record), str(record["name"])


@EXTRACTS
def _json_age(rng: random.Random) -> tuple[str, str]:
    record = {"name": rng.choice(NAMES), "age": rng.randint(18, 80), "city": rng.choice(CITIES)}
    return json.dumps(record), str(record["age"])


@EXTRACTS
def _csv_second(rng: random.Random) -> tuple[str, str]:
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    return f"{name},{city},{rng.randint(18, 80)}", city


@EXTRACTS
def _csv_to_sentence(rng: random.Random) -> tuple[str, str]:
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    return f"{name},{city}", f"{name} lives in {city}."


@EXTRACTS
def _lookup_age(rng: random.Random) -> tuple[str, str]:
    people = dict(zip(rng.sample(NAMES, 3), rng.sample(range(8, 80), 3), strict=True))
    asked = rng.choice([*people])
    facts = ", ".join(f"{name} is {age}" for name, age in people.items())
    return f"{facts}. How old is {asked}?", str(people[asked])


@EXTRACTS
def _oldest(rng: random.Random) -> tuple[str, str]:
    people = dict(zip(rng.sample(NAMES, 3), rng.sample(range(8, 80), 3), strict=True))
    return ", ".join(f"{name} is {age}" for name, age in people.items()), max(
        people, key=people.__getitem__
    )


@EXTRACTS
def _facts_yes_no(rng: random.Random) -> tuple[str, str]:
    name, thing = (
        rng.choice(NAMES),
        rng.choice(["a cat", "a bike", "a garden", "a piano", "a boat"]),
    )
    asked = thing if rng.random() < 0.5 else rng.choice(["a horse", "a car", "a farm", "a drum"])
    return f"{name} has {thing}. Does {name} have {asked}?", "yes" if asked == thing else "no"


@EXTRACTS
def _question_mark(rng: random.Random) -> tuple[str, str]:
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    asks = (
        "Where does {} live",
        "Has {} ever seen the sea",
        "When will {} arrive",
        "Is {} at home",
    )
    says = (
        "{} lives in " + city,
        "{} likes green tea",
        "{} will arrive soon",
        "{} is at work today",
    )
    if rng.random() < 0.5:
        return rng.choice(asks).format(name), "?"
    return rng.choice(says).format(name), "."
