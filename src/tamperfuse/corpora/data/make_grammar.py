"""Write the built-in minimal pairs of grammar, `grammar.jsonl` beside this script, which is not part of the wheel.

Each row is a pair of sentences which differ in one point of English grammar: ``good`` obeys it, ``bad`` breaks it. A
language model that knows the point gives the good sentence the higher likelihood.

A template has one or more frames (a good and a bad pattern) whose fields are filled from small word tables. Every
choice is made by hashing names and positions, so that the same source always writes the same file:

    python src/tamperfuse/corpora/data/make_grammar.py          # write the file
    python src/tamperfuse/corpora/data/make_grammar.py --check  # only compare it with what would be written
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import Formatter

PAIRS_PER_TEMPLATE = 80
MIN_WORDS, MAX_WORDS = 4, 12
ATTEMPTS_PER_PAIR = 60
DEFAULT_OUT = Path(__file__).resolve().parent / "grammar.jsonl"

Entry = str | tuple[str, ...]
Table = tuple[Entry, ...]


@dataclass(frozen=True)
class Template:
    """One point of grammar.

    Attributes:
        name: Short identifier, the prefix of the ids of its pairs.
        frames: (good, bad) patterns in the syntax of :meth:`str.format`. A field names a word table, with an optional
            digit when one table is used twice (``{person1[0]}`` and ``{person2[0]}`` never get the same entry).
        tables: Word tables used by this template alone; they take precedence over the shared ``LEXICON``.
    """

    name: str
    frames: tuple[tuple[str, str], ...]
    tables: Mapping[str, Table] = field(default_factory=dict)


def table(text: str) -> Table:
    """Read a word table: entries are separated by commas, the forms of one entry by slashes."""
    entries: list[Entry] = []
    for part in text.split(","):
        forms = tuple(form.strip() for form in part.split("/"))
        entries.append(forms if len(forms) > 1 else forms[0])
    return tuple(entries)


# Tables shared by the templates. The order of the forms of an entry is given in the comment above it.
LEXICON: dict[str, Table] = {
    # singular / plural
    "person": table(
        "boy/boys, girl/girls, teacher/teachers, doctor/doctors, farmer/farmers, student/students, nurse/nurses,"
        "driver/drivers, builder/builders, neighbor/neighbors, visitor/visitors, painter/painters, singer/singers,"
        "guard/guards, waiter/waiters, lawyer/lawyers, clerk/clerks, pilot/pilots, dancer/dancers, tailor/tailors"
    ),
    # male / female
    "kin": table(
        "brother/sister, father/mother, uncle/aunt, king/queen, boy/girl, man/woman, prince/princess, son/daughter,"
        "grandfather/grandmother, husband/wife"
    ),
    # singular / plural
    "thing": table(
        "book/books, key/keys, cup/cups, box/boxes, chair/chairs, lamp/lamps, basket/baskets, pillow/pillows,"
        "bottle/bottles, clock/clocks, spoon/spoons, hat/hats, blanket/blankets, bucket/buckets, mirror/mirrors,"
        "ladder/ladders, table/tables, candle/candles, ball/balls, bag/bags"
    ),
    # singular / plural, both forms irregular
    "irregular": table("child/children, man/men, woman/women, person/people, mouse/mice, goose/geese"),
    "place": table("garden, park, kitchen, office, library, barn, station, market, museum, hall"),
    "spot": table("on the table, under the bed, in the kitchen, by the door, behind the couch, on the shelf"),
    "mood": table("tired, happy, hungry, busy, ready, angry, calm, nervous, sick, excited, lonely, worried"),
    "look": table("old, new, dirty, broken, missing, expensive, very small, quite heavy"),
    "color": table("red, blue, green, yellow, white, black, brown"),
    "kind": table("old, new, small, heavy, red, broken, cheap, large"),
    "past_time": table("yesterday, last week, last night, this morning, two days ago, last month"),
    "future_time": table("tomorrow, next week, next Monday, next month, tomorrow morning, next Friday"),
    # singular / plural / time
    "be": table(
        "is/are/today, was/were/yesterday, is/are/again, was/were/this morning, is/are/now, was/were/last night"
    ),
    # singular / plural / rest
    "routine": table(
        "walks/walk/to work every day, drinks/drink/tea in the morning, reads/read/the paper at lunch,"
        "lives/live/near the river, works/work/in a small town, sings/sing/in the evening, plays/play/chess on Sundays,"
        "takes/take/the bus to town, feeds/feed/the birds in the park, wants/want/some time to rest,"
        "knows/know/the way to the lake, likes/like/warm weather, sleeps/sleep/until noon, needs/need/more help"
    ),
    # singular / plural
    "regard": table("helps/help, knows/know, likes/like, thanks/thank, trusts/trust, visits/visit, follows/follow"),
    "base": table(
        "like loud music, want any help, know the answer, live near here, work on Sundays, need a car, drive to work,"
        "speak French, own a boat, play the piano, like the cold"
    ),
    # base / third person / past / -ing form / object
    "act": table(
        "open/opens/opened/opening/the door, clean/cleans/cleaned/cleaning/the room,"
        "call/calls/called/calling/the office, move/moves/moved/moving/the table,"
        "watch/watches/watched/watching/the game, paint/paints/painted/painting/the wall,"
        "visit/visits/visited/visiting/the museum, finish/finishes/finished/finishing/the work,"
        "close/closes/closed/closing/the shop, carry/carries/carried/carrying/the box,"
        "wash/washes/washed/washing/the car, check/checks/checked/checking/the list"
    ),
    # past / base / -ing form / participle; verbs that take any small thing as their object
    "take": table(
        "found/find/finding/found, bought/buy/buying/bought, sold/sell/selling/sold, lost/lose/losing/lost,"
        "moved/move/moving/moved, carried/carry/carrying/carried, dropped/drop/dropping/dropped,"
        "hid/hide/hiding/hidden, borrowed/borrow/borrowing/borrowed, cleaned/clean/cleaning/cleaned"
    ),
    # past tense of verbs that never stand without an object
    "strict": table("found, bought, borrowed, carried, took, wanted, made, needed, mentioned, used"),
    # past tense of verbs that never take an object
    "rest": table("slept, sneezed, arrived, smiled, coughed, waited, laughed, cried, fell, appeared"),
    # past / participle / object; the two forms differ
    "irregular_verb": table(
        "broke/broken/cup, wrote/written/letter, drew/drawn/map, chose/chosen/color, threw/thrown/ball,"
        "hid/hidden/key, drove/driven/truck, sang/sung/song, rode/ridden/horse, wore/worn/hat, saw/seen/film,"
        "tore/torn/paper, gave/given/speech, took/taken/photo, ate/eaten/apple, stole/stolen/bike,"
        "shook/shaken/bottle, began/begun/lesson"
    ),
    "experience": table(
        "been to China, seen snow, ridden a camel, lived abroad, flown a plane, climbed a mountain, met a king,"
        "won a prize, owned a boat, visited Rome"
    ),
    # plain / comparative / superlative
    "grade": table(
        "tall/taller/tallest, old/older/oldest, young/younger/youngest, strong/stronger/strongest,"
        "fast/faster/fastest, kind/kinder/kindest, short/shorter/shortest, smart/smarter/smartest,"
        "rich/richer/richest, loud/louder/loudest, quick/quicker/quickest, brave/braver/bravest"
    ),
    # subject / object
    "pronoun": table("he/him, she/her, they/them, we/us, I/me"),
    # before a noun / alone
    "owner": table("my/mine, her/hers, our/ours, their/theirs, your/yours"),
    # singular / plural
    "this": table("this/these, that/those"),
    "modal": table("can, will, must, should, may, could"),
    "number": table("two, three, four, five, six"),
}

TEMPLATES: tuple[Template, ...] = (
    # --- subject and verb ---------------------------------------------------------------------------------------------
    Template(
        "agreement_verb",
        (
            ("The {person[0]} {routine[0]} {routine[2]}.", "The {person[0]} {routine[1]} {routine[2]}."),
            ("The {person[1]} {routine[1]} {routine[2]}.", "The {person[1]} {routine[0]} {routine[2]}."),
        ),
    ),
    Template(
        "agreement_question",
        (
            ("Does the {person[0]} {base}?", "Do the {person[0]} {base}?"),
            ("Do the {person[1]} {base}?", "Does the {person[1]} {base}?"),
        ),
    ),
    Template(
        "agreement_irregular_noun",
        (
            (
                "The {irregular[0]} {be[0]} in the {yard} {be[2]}.",
                "The {irregular[0]} {be[1]} in the {yard} {be[2]}.",
            ),
            (
                "The {irregular[1]} {be[1]} in the {yard} {be[2]}.",
                "The {irregular[1]} {be[0]} in the {yard} {be[2]}.",
            ),
        ),
        {"yard": table("garden, park, street, yard, barn, field, house")},
    ),
    Template(
        "agreement_of_phrase",
        (
            ("The {price[0]} of the {thing[1]} {is[0]} {odd}.", "The {price[0]} of the {thing[1]} {is[1]} {odd}."),
            ("The {price[1]} of the {thing[0]} {is[1]} {odd}.", "The {price[1]} of the {thing[0]} {is[0]} {odd}."),
        ),
        {
            "price": table(
                "owner/owners, picture/pictures, buyer/buyers, drawing/drawings, seller/sellers, photo/photos"
            ),
            "is": table("is/are, was/were"),
            "odd": table("well known, here, in the hall, in town, still missing, at the door"),
        },
    ),
    Template(
        "agreement_distractor_list",
        (
            (
                "The {thing1[0]} {by} the {thing2[1]} and the {thing3[1]} is {look}.",
                "The {thing1[0]} {by} the {thing2[1]} and the {thing3[1]} are {look}.",
            ),
            (
                "The {thing1[1]} {by} the {thing2[0]} and the {thing3[0]} are {look}.",
                "The {thing1[1]} {by} the {thing2[0]} and the {thing3[0]} is {look}.",
            ),
        ),
        {"by": table("behind, near, beside, under")},
    ),
    Template(
        "agreement_subject_relative",
        (
            (
                "The {person1[0]} who {regard[0]} the {person2[1]} is {mood}.",
                "The {person1[0]} who {regard[0]} the {person2[1]} are {mood}.",
            ),
            (
                "The {person1[1]} who {regard[1]} the {person2[0]} are {mood}.",
                "The {person1[1]} who {regard[1]} the {person2[0]} is {mood}.",
            ),
        ),
    ),
    Template(
        "agreement_object_relative",
        (
            (
                "The {person1[0]} that the {person2[1]} {regard[1]} is {mood}.",
                "The {person1[0]} that the {person2[1]} {regard[1]} are {mood}.",
            ),
            (
                "The {person1[1]} that the {person2[0]} {regard[0]} are {mood}.",
                "The {person1[1]} that the {person2[0]} {regard[0]} is {mood}.",
            ),
        ),
    ),
    Template(
        "agreement_there",
        (
            ("There is a {thing[0]} {spot}.", "There are a {thing[0]} {spot}."),
            ("There are {number} {thing[1]} {spot}.", "There is {number} {thing[1]} {spot}."),
        ),
    ),
    Template(
        "agreement_coordination",
        (
            (
                "The {person1[0]} and the {person2[0]} {be[1]} {mood} {be[2]}.",
                "The {person1[0]} and the {person2[0]} {be[0]} {mood} {be[2]}.",
            ),
        ),
    ),
    Template(
        "agreement_quantified",
        (
            ("{every} {person[0]} {routine[0]} {routine[2]}.", "{every} {person[0]} {routine[1]} {routine[2]}."),
            ("{all} {person[1]} {routine[1]} {routine[2]}.", "{all} {person[1]} {routine[0]} {routine[2]}."),
        ),
        {"every": table("every, each"), "all": table("all the, both, many, several")},
    ),
    # --- reflexives and other pronouns --------------------------------------------------------------------------------
    Template(
        "anaphor_gender",
        (
            ("The {kin[0]} {reflex[0]} himself {reflex[1]}.", "The {kin[0]} {reflex[0]} herself {reflex[1]}."),
            ("The {kin[1]} {reflex[0]} herself {reflex[1]}.", "The {kin[1]} {reflex[0]} himself {reflex[1]}."),
        ),
        {
            "reflex": table(
                "hurt/at the game, saw/in the mirror, blamed/for the mistake, introduced/to the guests, taught/to swim,"
                "bought/a new coat, made/a hot drink, hid/behind the door"
            )
        },
    ),
    Template(
        "anaphor_number",
        (
            ("The {kin[0]} {reflex[0]} himself {reflex[1]}.", "The {kin[0]} {reflex[0]} themselves {reflex[1]}."),
            ("The {person[1]} {reflex[0]} themselves {reflex[1]}.", "The {person[1]} {reflex[0]} himself {reflex[1]}."),
            ("The {kin[1]} {reflex[0]} herself {reflex[1]}.", "The {kin[1]} {reflex[0]} themselves {reflex[1]}."),
            ("The {person[1]} {reflex[0]} themselves {reflex[1]}.", "The {person[1]} {reflex[0]} herself {reflex[1]}."),
        ),
        {
            "reflex": table(
                "hurt/at the game, saw/in the mirror, blamed/for the mistake, introduced/to the guests, taught/to swim,"
                "warmed/by the fire, dried/with a towel, hid/behind the door"
            )
        },
    ),
    Template(
        "anaphor_locality",
        (
            (
                "The {kin1[0]} {said} that the {kin2[1]} {hurt} herself.",
                "The {kin1[0]} {said} that the {kin2[1]} {hurt} himself.",
            ),
            (
                "The {kin1[1]} {said} that the {kin2[0]} {hurt} himself.",
                "The {kin1[1]} {said} that the {kin2[0]} {hurt} herself.",
            ),
        ),
        {
            "said": table("said, thought, knew, heard, believed"),
            "hurt": table("hurt, blamed, helped, surprised, trusted, saved"),
        },
    ),
    Template(
        "reciprocal_number",
        (
            (
                "The {person[1]} {regard[0]} each other very {much}.",
                "The {person[0]} {regard[1]} each other very {much}.",
            ),
            (
                "The {person[1]} {met} each other {past_time}.",
                "The {person[0]} {met} each other {past_time}.",
            ),
        ),
        {
            "regard": table("like/likes, trust/trusts, admire/admires, miss/misses, respect/respects"),
            "much": table("much, deeply"),
            "met": table("met, helped, saw, called, followed, thanked"),
        },
    ),
    Template(
        "anaphor_clause_subject",
        (
            ("The {kin[0]} {says} that he is {mood}.", "The {kin[0]} {says} that himself is {mood}."),
            ("The {kin[1]} {says} that she is {mood}.", "The {kin[1]} {says} that herself is {mood}."),
        ),
        {"says": table("says, thinks, knows, believes, admits")},
    ),
    Template(
        "pronoun_case",
        (
            (
                "{pronoun[0]} {take[0]} the {thing[0]} {past_time}.",
                "{pronoun[1]} {take[0]} the {thing[0]} {past_time}.",
            ),
            (
                "The {person[0]} {met} {pronoun[1]} in the {place}.",
                "The {person[0]} {met} {pronoun[0]} in the {place}.",
            ),
        ),
        {"met": table("saw, met, helped, found, spoke to, waited for, laughed at, walked with")},
    ),
    Template(
        "possessive_pronoun",
        (
            (
                "The {person[0]} {take[0]} {owner[0]} {thing[0]} {past_time}.",
                "The {person[0]} {take[0]} {owner[1]} {thing[0]} {past_time}.",
            ),
            ("{this[0]} {kind} {thing[0]} is {owner[1]}.", "{this[0]} {kind} {thing[0]} is {owner[0]}."),
        ),
    ),
    Template(
        "tag_question",
        (
            ("The {kin[0]} is {mood}, isn't he?", "The {kin[0]} is {mood}, doesn't he?"),
            ("The {kin[1]} is {mood}, isn't she?", "The {kin[1]} is {mood}, aren't she?"),
            ("The {person[1]} are {mood}, aren't they?", "The {person[1]} are {mood}, isn't they?"),
        ),
    ),
    # --- determiners, nouns, articles ---------------------------------------------------------------------------------
    Template(
        "determiner_adjective_noun",
        (
            (
                "The {person[0]} {take[0]} {this[0]} {kind} {thing[0]}.",
                "The {person[0]} {take[0]} {this[1]} {kind} {thing[0]}.",
            ),
            (
                "The {person[0]} {take[0]} {this[1]} {kind} {thing[1]}.",
                "The {person[0]} {take[0]} {this[0]} {kind} {thing[1]}.",
            ),
        ),
    ),
    Template(
        "determiner_irregular_noun",
        (
            (
                "The {person[0]} {saw} {this[0]} {irregular[0]} {past_time}.",
                "The {person[0]} {saw} {this[1]} {irregular[0]} {past_time}.",
            ),
            (
                "The {person[0]} {saw} {this[1]} {irregular[1]} {past_time}.",
                "The {person[0]} {saw} {this[0]} {irregular[1]} {past_time}.",
            ),
        ),
        {
            "saw": table("saw, watched, followed, found, helped"),
            "irregular": table("child/children, man/men, woman/women, mouse/mice, goose/geese"),
        },
    ),
    Template(
        "quantifier_noun",
        (
            (
                "{many} {person[1]} {take[0]} a {thing[0]} {past_time}.",
                "{many} {person[0]} {take[0]} a {thing[0]} {past_time}.",
            ),
            (
                "{every} {person[0]} {take[0]} a {thing[0]} {past_time}.",
                "{every} {person[1]} {take[0]} a {thing[0]} {past_time}.",
            ),
        ),
        {"many": table("many, several, both, few"), "every": table("every, each, another")},
    ),
    Template(
        "partitive_noun",
        (
            (
                "{one} of the {person[1]} {take[0]} the {thing[0]} {past_time}.",
                "{one} of the {person[0]} {take[0]} the {thing[0]} {past_time}.",
            ),
        ),
        {"one": table("one, two, three, each, several, many")},
    ),
    Template(
        "much_many",
        (
            (
                "How many {thing[1]} did the {person[0]} {need}?",
                "How much {thing[1]} did the {person[0]} {need}?",
            ),
            (
                "How much {stuff} did the {person[0]} {need}?",
                "How many {stuff} did the {person[0]} {need}?",
            ),
        ),
        {
            "need": table("buy, need, find, use, want, bring"),
            "stuff": table("water, sand, paper, money, soap, paint, wood, wool, oil, furniture"),
        },
    ),
    Template(
        "article_a_an",
        (
            (
                "The {person[0]} {take[0]} an {vowel} {thing[0]} {past_time}.",
                "The {person[0]} {take[0]} a {vowel} {thing[0]} {past_time}.",
            ),
            (
                "The {person[0]} {take[0]} a {consonant} {thing[0]} {past_time}.",
                "The {person[0]} {take[0]} an {consonant} {thing[0]} {past_time}.",
            ),
        ),
        {
            "vowel": table("old, empty, ugly, orange, expensive, enormous, unusual, odd"),
            "consonant": table("new, small, heavy, red, broken, cheap, large, plain"),
        },
    ),
    Template(
        "there_quantifier",
        (
            ("There was a {person[0]} in the {place}.", "There was every {person[0]} in the {place}."),
            ("There were {some} {person[1]} in the {place}.", "There were all {person[1]} in the {place}."),
        ),
        {"some": table("some, many, several, two")},
    ),
    # --- verb forms ---------------------------------------------------------------------------------------------------
    Template(
        "past_tense_form",
        (
            (
                "The {person[0]} {irregular_verb[0]} the {irregular_verb[2]} {past_time}.",
                "The {person[0]} {irregular_verb[1]} the {irregular_verb[2]} {past_time}.",
            ),
        ),
    ),
    Template(
        "perfect_participle",
        (
            (
                "The {person[0]} has {irregular_verb[1]} the {irregular_verb[2]}.",
                "The {person[0]} has {irregular_verb[0]} the {irregular_verb[2]}.",
            ),
            (
                "The {person[1]} have {irregular_verb[1]} the {irregular_verb[2]}.",
                "The {person[1]} have {irregular_verb[0]} the {irregular_verb[2]}.",
            ),
        ),
    ),
    Template(
        "modal_verb",
        (
            ("The {person[0]} {modal} {act[0]} {act[4]}.", "The {person[0]} {modal} {act[1]} {act[4]}."),
            ("The {person[0]} {modal} {act[0]} {act[4]}.", "The {person[0]} {modal} {act[2]} {act[4]}."),
        ),
    ),
    Template(
        "verb_complement",
        (
            ("The {person[0]} {wants} to {act[0]} {act[4]}.", "The {person[0]} {wants} {act[3]} {act[4]}."),
            ("The {person[0]} {enjoyed} {act[3]} {act[4]}.", "The {person[0]} {enjoyed} to {act[0]} {act[4]}."),
            (
                "The {person1[0]} {let} the {person2[0]} {act[0]} {act[4]}.",
                "The {person1[0]} {let} the {person2[0]} {act[3]} {act[4]}.",
            ),
        ),
        {
            "wants": table("wants, hopes, plans, decided, promised, agreed"),
            "enjoyed": table("enjoyed, avoided, finished, suggested, considered, disliked"),
            "let": table("let, made"),
        },
    ),
    Template(
        "do_support_verb",
        (
            ("The {person[0]} did not {act[0]} {act[4]}.", "The {person[0]} did not {act[2]} {act[4]}."),
            ("Did the {person[0]} {act[0]} {act[4]}?", "Did the {person[0]} {act[2]} {act[4]}?"),
        ),
    ),
    Template(
        "tense_time",
        (
            (
                "The {person[0]} {act[2]} {act[4]} {past_time}.",
                "The {person[0]} will {act[0]} {act[4]} {past_time}.",
            ),
            (
                "The {person[0]} will {act[0]} {act[4]} {future_time}.",
                "The {person[0]} {act[2]} {act[4]} {future_time}.",
            ),
        ),
        {"past_time": table("yesterday, last week, last night, two days ago, last month")},
    ),
    # --- argument structure, passive, prepositions --------------------------------------------------------------------
    Template(
        "intransitive_verb",
        (
            (
                "The {person[0]} {rest} in the {place} {past_time}.",
                "The {person[0]} {rest} the {place} {past_time}.",
            ),
        ),
    ),
    Template(
        "passive_verb",
        (
            ("The {thing[0]} was {take[3]} by the {person[0]}.", "The {thing[0]} was {rest} by the {person[0]}."),
            ("The {thing[1]} were {take[3]} by the {person[0]}.", "The {thing[1]} were {rest} by the {person[0]}."),
        ),
    ),
    Template(
        "dative_verb",
        (
            (
                "The {person1[0]} {explained} the {lesson} to the {person2[0]}.",
                "The {person1[0]} {explained} the {person2[0]} the {lesson}.",
            ),
        ),
        {
            "explained": table("explained, described, mentioned, announced, reported, repeated"),
            "lesson": table("problem, plan, story, idea, accident, answer, change"),
        },
    ),
    Template(
        "locative_verb",
        (
            (
                "The {person[0]} {filled} the {bucket} with {sand}.",
                "The {person[0]} {filled} {sand} into the {bucket}.",
            ),
        ),
        {
            "filled": table("filled, covered, surrounded"),
            "bucket": table("bucket, box, hole, basket, sink"),
            "sand": table("sand, snow, leaves, paper, dirt, stones"),
        },
    ),
    Template(
        "expletive_subject",
        (
            ("It {seems} that the {person[0]} is {mood}.", "He {seems} that the {person[0]} is {mood}."),
            ("It {seems} that the {person[1]} are {mood}.", "She {seems} that the {person[1]} are {mood}."),
        ),
        {"seems": table("seems, appears, turns out, seemed at first, is likely, now seems")},
    ),
    Template(
        "preposition_adjective",
        (
            (
                "The {person[0]} {be[0]} {fond[0]} {fond[1]} {fond[3]}.",
                "The {person[0]} {be[0]} {fond[0]} {fond[2]} {fond[3]}.",
            ),
        ),
        {
            "fond": table(
                "afraid/of/with/the dark, good/at/from/chess, interested/in/of/history, proud/of/at/the garden,"
                "tired/of/at/the noise, ready/for/of/the trip, late/for/of/the meeting, angry/about/into/the noise,"
                "kind/to/at/animals, sure/of/at/the answer, busy/with/of/the work, famous/for/of/the jokes,"
                "sorry/about/at/the mistake, similar/to/of/the others"
            )
        },
    ),
    Template(
        "preposition_verb",
        (
            (
                "The {person[0]} {listened[0]} {listened[1]} {listened[3]} {past_time}.",
                "The {person[0]} {listened[0]} {listened[2]} {listened[3]} {past_time}.",
            ),
        ),
        {
            "listened": table(
                "listened/to/of/the radio, waited/for/of/the bus, looked/at/of/the picture, paid/for/of/the ticket,"
                "thought/about/at/the trip, laughed/at/of/the joke, agreed/with/of/the plan, arrived/at/to/the station,"
                "worried/about/to/the weather, talked/about/into/the weather, knocked/on/of/the door,"
                "pointed/at/of/the map, complained/about/at/the noise, searched/for/of/the key"
            )
        },
    ),
    Template(
        "preposition_time",
        (
            (
                "The {person[0]} {act[2]} {act[4]} {on[0]} {on[2]}.",
                "The {person[0]} {act[2]} {act[4]} {on[1]} {on[2]}.",
            ),
        ),
        {
            "on": table(
                "on/in/Monday, in/at/July, at/in/noon, at/on/midnight, on/in/Friday, in/at/March, at/in/six o'clock,"
                "on/at/Sunday, in/at/the morning, on/in/the first of May, in/on/1990, at/on/half past nine"
            )
        },
    ),
    # --- questions, gaps, islands -------------------------------------------------------------------------------------
    Template(
        "complement_or_gap",
        (
            (
                "{know} that the {person[0]} {strict} the {thing[0]}.",
                "{know} what the {person[0]} {strict} the {thing[0]}.",
            ),
            (
                "{know} what the {person[0]} {strict} {past_time}.",
                "{know} that the {person[0]} {strict} {past_time}.",
            ),
        ),
        {"know": table("I know, we heard, she remembers, he forgot, they noticed")},
    ),
    Template(
        "long_distance_gap",
        (
            (
                "{know} what the {person1[0]} {thinks} the {person2[0]} {strict}.",
                "{know} that the {person1[0]} {thinks} the {person2[0]} {strict}.",
            ),
        ),
        {
            "know": table("I know, we heard, she remembers, he forgot, they noticed"),
            "thinks": table("thinks, says, believes, hopes"),
        },
    ),
    Template(
        "question_order",
        (
            (
                "{when} {modal} the {person[0]} {act[0]} {act[4]}?",
                "{when} the {person[0]} {modal} {act[0]} {act[4]}?",
            ),
            (
                "{when} did the {person[0]} {act[0]} {act[4]}?",
                "{when} the {person[0]} did {act[0]} {act[4]}?",
            ),
        ),
        {"when": table("when, why, how, where"), "modal": table("will, can, should")},
    ),
    Template(
        "question_left_branch",
        (("{which} {thing[0]} did the {person[0]} {take[1]}?", "{which} did the {person[0]} {take[1]} {thing[0]}?"),),
        {"which": table("which, whose, what kind of")},
    ),
    Template(
        "relative_gap",
        (
            (
                "{here} the {thing[0]} that the {person[0]} {take[0]} {past_time}.",
                "{here} the {thing[0]} that the {person[0]} {take[0]} it {past_time}.",
            ),
        ),
        {"here": table("this is, that was, here is, I saw, we have")},
    ),
    Template(
        "relative_pronoun",
        (
            (
                "I {met} the {person[0]} who {routine[0]} {routine[2]}.",
                "I {met} the {person[0]} which {routine[0]} {routine[2]}.",
            ),
            ("I saw the {thing[0]} which {fell}.", "I saw the {thing[0]} who {fell}."),
        ),
        {
            "met": table("met, know, saw"),
            "fell": table("fell off the shelf, stood near the door, lay on the floor, cost so much, came in the mail"),
        },
    ),
    Template(
        "island_adjunct",
        (
            (
                "What did the {person[0]} {take[1]} {after} {leaving[1]} the {place}?",
                "What did the {person[0]} {leaving[0]} the {place} {after} {take[2]}?",
            ),
        ),
        {"after": table("after, before"), "leaving": table("leave/leaving, enter/entering, visit/visiting")},
    ),
    Template(
        "island_relative_clause",
        (
            (
                "What did the {person1[0]} {say} that the {person2[0]} {strict}?",
                "What did the {person1[0]} {meet} the {person2[0]} who {strict}?",
            ),
        ),
        {"say": table("say, think, believe, hear, claim"), "meet": table("meet, see, know, call, help")},
    ),
    Template(
        "island_coordination",
        (
            (
                "What did the {person[0]} {take[1]} besides the {thing[0]}?",
                "What did the {person[0]} {take[1]} the {thing[0]} and?",
            ),
        ),
    ),
    # --- polarity, ellipsis, comparison, word order -------------------------------------------------------------------
    Template(
        "polarity_any",
        (
            ("{nobody[0]} {take[0]} any {thing[1]} {past_time}.", "{nobody[1]} {take[0]} any {thing[1]} {past_time}."),
            (
                "The {person[0]} never {take[0]} any {thing[1]}.",
                "The {person[0]} often {take[0]} any {thing[1]}.",
            ),
        ),
        {"nobody": table("nobody/everybody, no one/someone, none of them/all of them")},
    ),
    Template(
        "polarity_ever",
        (
            ("No {person[0]} has ever {experience}.", "Some {person[0]} has ever {experience}."),
            ("None of the {person[1]} have ever {experience}.", "All of the {person[1]} have ever {experience}."),
        ),
    ),
    Template(
        "polarity_scope",
        (
            (
                "No {person1[0]} who the {person2[0]} {knows} has ever {experience}.",
                "The {person1[0]} who no {person2[0]} {knows} has ever {experience}.",
            ),
        ),
        {"knows": table("knows, likes, trusts, met, saw")},
    ),
    Template(
        "polarity_either",
        (
            (
                "The {person1[0]} cannot {swim} and the {person2[0]} cannot either.",
                "The {person1[0]} cannot {swim} and the {person2[0]} can either.",
            ),
            (
                "The {person1[0]} {left}, and so did the {person2[0]}.",
                "The {person1[0]} {left}, and neither did the {person2[0]}.",
            ),
        ),
        {
            "left": table("left early, came home, walked away, sang well, worked hard, arrived late"),
            "swim": table("swim, drive, sing, ski, dance, read music"),
        },
    ),
    Template(
        "ellipsis_noun",
        (
            (
                "The {person1[0]} found one {color} {thing[0]} and the {person2[0]} found {number}.",
                "The {person1[0]} found one {thing[0]} and the {person2[0]} found {number} {color}.",
            ),
        ),
    ),
    Template(
        "ellipsis_auxiliary",
        (
            (
                "The {person1[0]} was {mood}, but the {person2[0]} was not.",
                "The {person1[0]} was {mood}, but the {person2[0]} did not.",
            ),
            (
                "The {person1[0]} {left}, but the {person2[0]} did not.",
                "The {person1[0]} {left}, but the {person2[0]} was not.",
            ),
        ),
        {"left": table("left early, came home, walked away, sang well, worked hard, arrived late")},
    ),
    Template(
        "comparative_form",
        (
            (
                "The {person1[0]} is {grade[1]} than the {person2[0]}.",
                "The {person1[0]} is {grade[0]} than the {person2[0]}.",
            ),
            (
                "The {person1[0]} is {grade[1]} than the {person2[0]}.",
                "The {person1[0]} is {grade[2]} than the {person2[0]}.",
            ),
        ),
    ),
    Template(
        "superlative_form",
        (
            (
                "This is the {grade[2]} {person[0]} in the {town}.",
                "This is the most {grade[2]} {person[0]} in the {town}.",
            ),
            (
                "The {person[0]} is the {grade[2]} of them all.",
                "The {person[0]} is the {grade[0]} of them all.",
            ),
        ),
        {"town": table("town, country, city, village, world")},
    ),
    Template(
        "enough_order",
        (
            (
                "The {person[0]} is {old} enough to {task}.",
                "The {person[0]} is enough {old} to {task}.",
            ),
        ),
        {
            "old": table("old, tall, strong, fast, smart, brave"),
            "task": table("help us, join the team, win the race, do the job, lead the group, travel alone"),
        },
    ),
    Template(
        "adverb_order",
        (
            (
                "The {person[0]} {act[0]} {act[1]} {manner}.",
                "The {person[0]} {act[0]} {manner} {act[1]}.",
            ),
        ),
        {
            "manner": table("carefully, quickly, slowly, quietly, easily, calmly"),
            "act": table(
                "opened/the door, cleaned/the room, moved/the table, painted/the wall, washed/the car,"
                "carried/the box, closed/the shop, checked/the list"
            ),
        },
    ),
)


def digest(*parts: object) -> str:
    """Hash some names and numbers in a way that never changes."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode("utf-8")).hexdigest()


@cache
def shuffled(size: int, *key: object) -> tuple[int, ...]:
    """Put the numbers below ``size`` in an order fixed by ``key``."""
    return tuple(sorted(range(size), key=lambda place: digest(*key, place)))


def fields(*patterns: str) -> list[str]:
    """List the distinct field names of some patterns, without their indexes, in order of appearance."""
    names: list[str] = []
    for pattern in patterns:
        for _, name, _, _ in Formatter().parse(pattern):
            if name is not None and name.split("[")[0] not in names:
                names.append(name.split("[")[0])
    return names


def fill(pattern: str, values: Mapping[str, Entry]) -> str:
    """Fill a pattern and put a capital letter in front."""
    sentence = pattern.format(**values)
    return sentence[0].upper() + sentence[1:]


def choose(template: Template, frame: int, names: Sequence[str], step: int) -> dict[str, Entry] | None:
    """Choose the words of one attempt; None if two fields of one table got the same entry.

    Each field runs through its table in rounds, every round in an order of its own, so that all the entries of a table
    are used about equally often.
    """
    values: dict[str, Entry] = {}
    used: set[tuple[str, int]] = set()
    for name in names:
        source = name.rstrip("0123456789")
        entries = template.tables[source] if source in template.tables else LEXICON[source]
        turn, place = divmod(step, len(entries))
        index = shuffled(len(entries), template.name, frame, name, turn)[place]
        if (source, index) in used:
            return None
        used.add((source, index))
        values[name] = entries[index]
    return values


def expand(template: Template, count: int = PAIRS_PER_TEMPLATE) -> list[tuple[str, str]]:
    """List ``count`` distinct pairs of a template, the same number from each of its frames (give or take one)."""
    pairs: list[tuple[str, str]] = []
    distinct: set[tuple[str, str]] = set()
    for frame, (good, bad) in enumerate(template.frames):
        names = fields(good, bad)
        frame_count = count // len(template.frames) + (frame < count % len(template.frames))
        added = 0
        for step in range(ATTEMPTS_PER_PAIR * frame_count):
            if added == frame_count:
                break
            values = choose(template, frame, names, step)
            if values is None:
                continue
            pair = (fill(good, values), fill(bad, values))
            if pair not in distinct:
                distinct.add(pair)
                pairs.append(pair)
                added += 1
        if added < frame_count:
            raise ValueError(f"{template.name}: frame {frame} has only {added} of {frame_count} pairs")
    return pairs


def build(count: int = PAIRS_PER_TEMPLATE) -> list[dict[str, str]]:
    """Build all the rows of the data set, sorted by id.

    Args:
        count: Pairs per template.

    Returns:
        Rows with the keys ``id``, ``template``, ``good`` and ``bad``.

    Raises:
        ValueError: If two templates share a name or a pair, a sentence is too short or too long, or a template has too
            few combinations.
    """
    rows: list[dict[str, str]] = []
    owners: dict[tuple[str, str], str] = {}
    for template in TEMPLATES:
        for number, (good, bad) in enumerate(expand(template, count), start=1):
            other = owners.setdefault((good, bad), template.name)
            if other != template.name:
                raise ValueError(f"{template.name} and {other} share the pair {good!r} / {bad!r}")
            for sentence in (good, bad):
                if not MIN_WORDS <= len(sentence.split()) <= MAX_WORDS:
                    raise ValueError(f"{template.name}: wrong length: {sentence!r}")
            if good == bad:
                raise ValueError(f"{template.name}: no difference: {good!r}")
            rows.append({"id": f"{template.name}-{number:03d}", "template": template.name, "good": good, "bad": bad})
    if len({row["id"] for row in rows}) != len(rows):
        raise ValueError("two templates share a name")
    return sorted(rows, key=lambda row: row["id"])


def render(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the text of the file: one JSON object a line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file, or with ``--check`` compare it."""
    parser = argparse.ArgumentParser(description="Write the minimal pairs of grammar.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="the file to write (default: %(default)s)")
    parser.add_argument(
        "--check", action="store_true", help="compare the file with what would be written, write nothing"
    )
    args = parser.parse_args(argv)
    rows = build()
    text = render(rows)
    if args.check:
        same = args.out.is_file() and args.out.read_bytes() == text.encode("utf-8")
        sys.stdout.write(f"{args.out} is {'up to date' if same else 'out of date'}\n")
        return 0 if same else 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(text.encode("utf-8"))
    sys.stdout.write(f"{len(rows)} pairs from {len(TEMPLATES)} templates written to {args.out}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
