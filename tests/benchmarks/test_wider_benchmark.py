"""The benchmark of wider labels: what it puts above what photos show. A whole run takes minutes, and is in docs."""

from __future__ import annotations

from benchmarks.wider import FIRST, Classes, senses, synsets

NOUNS = """\
  1 This software and database is licensed
00000001 05 n 02 dog 0 domestic_dog 0 001 @ 00000002 n 0000 | a member of the genus Canis; "the dog barked"
00000002 05 n 01 canine 0 001 @ 00000003 n 0000 | any of various mammals
00000003 05 n 01 animal 0 000 | a living organism
00000004 08 n 01 beaver 0 001 @ 00000005 n 0000 | a full beard
00000005 08 n 01 beard 0 000 | hair on the chin
00000006 05 n 01 beaver 0 001 @ 00000003 n 0000 | large rodent
""".splitlines()
INDEX = ["  1 licence", "dog n 1 1 @ 1 1 00000001", "beaver n 2 1 @ 2 1 00000004 00000006", "animal n 1 0 1 0 00000003"]


def test_classes_are_those_of_the_sense_that_photos_show() -> None:
    """Catches: a beaver below the beards, by the commonest sense."""
    classes = Classes(synsets(NOUNS), senses(INDEX), {}, {}, {})
    classes.put_above(47, "beaver")
    classes.put_above(144, "dog")
    classes.put_above(9, "no such noun")
    animal, canine = FIRST + 3, FIRST + 2
    assert classes.parents == {47: [animal], 144: [canine], 9: []}
    assert classes.all_above() == {47: {animal}, 144: {canine, animal}, 9: set(), canine: {animal}, animal: set()}
    assert classes.items == {"00000006": 47, "00000001": 144}


def test_made_items_have_names_links_and_what_stands_above_them() -> None:
    classes = Classes(synsets(NOUNS), senses(INDEX), {}, {}, {})
    assert classes.item("00000001") == FIRST + 1
    dog, canine, animal = sorted(classes.lines({"00000001"}), key=lambda line: line["id"])
    assert dog["labels"]["en"]["value"] == "dog"
    assert [a["value"] for a in dog["aliases"]["en"]] == ["domestic dog"]
    assert dog["descriptions"]["en"]["value"] == "a member of the genus Canis"
    above = [
        [c["mainsnak"]["datavalue"]["value"]["numeric-id"] for c in i["claims"]["P279"]] for i in (dog, canine, animal)
    ]
    assert above == [[FIRST + 2], [FIRST + 3], [729]]
    assert len(dog["sitelinks"]) < len(canine["sitelinks"])
