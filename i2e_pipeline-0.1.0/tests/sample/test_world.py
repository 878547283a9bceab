"""The sample world is what its README says it is."""

from __future__ import annotations

import html
import json

from i2e_pipeline.sample import dump
from i2e_pipeline.sample.art import load_art
from i2e_pipeline.sample.captions import FOREIGN, usable
from i2e_pipeline.sample.draws import draw
from i2e_pipeline.sample.world import ART, HELD_OUT_STYLE, load_world


def test_ids_are_unique_and_wikidatas() -> None:
    world = load_world()
    ids = [e.id for e in (*world.depicted, *world.others)]
    assert len(ids) == len(set(ids))
    assert all(q[0] == "Q" and q[1:].isdigit() and int(q[1:]) < 9_000_000_000 for q in ids), "no ids of our own making"


def test_names_collide_as_often_as_promised() -> None:
    world = load_world()
    drawn = {e.id for e in world.depicted}
    assert 120 <= len(world.depicted) <= 200
    assert len(world.collisions) >= 20
    only_the_picture_can_tell = [s for s, ids in world.collisions.items() if len(drawn.intersection(ids)) > 1]
    assert len(only_the_picture_can_tell) >= 12, only_the_picture_can_tell
    assert {"turkey", "georgia", "mouse", "football", "congo"} <= set(only_the_picture_can_tell)


def test_every_depicted_entity_is_drawn_in_two_styles_of_training_or_more() -> None:
    art = load_art()
    few = {
        e.label: art.styles(e.id, training=True)
        for e in load_world().depicted
        if len(art.styles(e.id, training=True)) < 2
    }
    assert all(styles == ("drawn",) for styles in few.values()), few


def test_the_held_out_style_never_reaches_training() -> None:
    """Catches: a figure for an unseen style that the model has seen."""
    assert all(HELD_OUT_STYLE not in load_art().styles(e.id, training=True) for e in load_world().depicted)
    assert all(draw(20, "training", n).style != HELD_OUT_STYLE for n in range(400))
    share = sum(draw(20, "scored", n).style == HELD_OUT_STYLE for n in range(3000)) / 3000
    assert 1 / 3 <= share <= 0.42


def test_training_never_sees_the_planets_that_are_scored() -> None:
    """Catches: our own drawings, kept variants leaking through a changed count."""
    art = load_art()
    for e in load_world().depicted:
        if "drawn" in art.index and e.id in art.index["drawn"]:
            seen, kept = (set(art.variants("drawn", e.id, training)) for training in (True, False))
            assert seen
            assert kept
            assert not seen & kept


def test_captions_hold_what_they_are_said_to_hold() -> None:
    world = load_world()
    wrong = nothing = 0
    for n in range(1500):
        row = draw(20, "scored", n)
        said = row.caption
        text = " ".join(html.unescape(said.text).casefold().split())
        for surface, qid in said.spans:
            entity = world.by_id[qid]
            bears = {s.casefold().replace(" ", "-") for s in (*entity.surfaces, *entity.names.values())}
            assert surface.casefold().replace(" ", "-") in bears
            # Mojibake spoils letters beyond ASCII; the rest must stand.
            assert not surface.isascii() or surface.casefold() in text, (surface, said.text)
        assert said.mentioned == tuple(q for _, q in said.spans)
        wrong += bool(said.mentioned) and row.truth.id not in said.mentioned
        nothing += not said.mentioned
    assert 0.06 < wrong / 1500 < 0.12
    assert 0.04 < nothing / 1500 < 0.1


def test_a_caption_that_names_only_another_never_names_the_truth_by_accident_of_homonymy() -> None:
    """Catches: `mouse` planted as the animal under a picture of the device: that is no wrong caption."""
    world = load_world()
    for n in range(2000):
        row = draw(20, "scored", n)
        if row.truth.id not in row.caption.mentioned:
            for surface, _ in row.caption.spans:
                assert row.truth.id not in world.bearers.get(surface.casefold(), ())


def test_foreign_captions_use_names_that_the_dump_holds() -> None:
    for e in load_world().depicted:
        assert set(FOREIGN) <= set(e.names)
        assert usable(e)


def test_the_dump_has_the_irregularities_of_real_ones() -> None:
    lines = list(dump.dump_lines(load_world()))
    assert lines[0] == "[\n"
    assert lines[-1] == "]\n"
    assert all(line.endswith(",\n") for line in lines[1:-2])
    assert not lines[-2].endswith(",\n")
    rows = [json.loads(line.rstrip(",\n")) for line in lines[1:-1]]
    items = [r for r in rows if r["type"] == "item"]
    assert len(rows) - len(items) == 1, "one property"
    assert [int(r["id"][1:]) for r in items] == sorted(int(r["id"][1:]) for r in items)
    assert any("en" not in r["labels"] and "mul" in r["labels"] for r in items)
    assert any(r["aliases"] == [] for r in items)
    assert any(r["claims"] == [] for r in items)
    assert any(r["descriptions"] == [] for r in items)
    kinds = [s for r in items if r["claims"] for s in r["claims"].get("P31", [])]
    assert any(s["rank"] == "deprecated" for s in kinds)
    types = {s["mainsnak"]["datavalue"]["value"]["id"] for s in kinds}
    assert {"Q4167410", "Q13442814", "Q11424", "Q5", "Q101352"} <= types
    images = [s["mainsnak"]["snaktype"] for r in items if r["claims"] for s in r["claims"].get("P18", [])]
    assert {"value", "novalue"} <= set(images)


def test_drawings_ship_with_licences() -> None:
    text = (ART / "LICENSES.md").read_text()
    assert all(f"`{sheet.name}`" in text for sheet in ART.glob("*.webp"))
    assert "BY-SA" in text.split("deliberately not here")[0]
    assert sum(f.stat().st_size for f in ART.iterdir()) < 8_000_000
