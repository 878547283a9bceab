"""The app as a browser asks it: pages, what their scripts ask, and whom it answers."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from i2e_pipeline.commands.explore import explored
from i2e_pipeline.core import files
from i2e_pipeline.dataset.place import Place
from i2e_pipeline.dataset.published import NotPublished
from i2e_pipeline.explore.app import Explored, app, marked, pieces
from i2e_pipeline.inputs import marks
from i2e_pipeline.pages import palette
from tests.report.conftest import Output, entity, image

HOME = "http://127.0.0.1:8765"
HOSTILE = "</script><script>document.title='taken'</script>\"'><img src=x onerror=\"document.title='taken'\"> & Mercury"


def client(of: Explored) -> TestClient:
    return TestClient(app(of), HOME, follow_redirects=False)


@pytest.fixture(scope="module")
def browser_of(alone: Explored) -> TestClient:
    return client(alone)


@pytest.fixture
def hostile(tmp_path: Path) -> Explored:
    """A dataset in which everything that comes from outside wants to be markup."""
    output = Output(tmp_path / "out")
    hostile = image("Mercury", (308, 0, 0.9), alt_text=HOSTILE, url=f"https://example.org/{HOSTILE}", key=HOSTILE)
    hostile["labels"][0]["mention"] = "<b>Mercury</b>"
    known = entity(308, f"Mercury{HOSTILE}", 1, class_index=0, description=HOSTILE, aliases=[HOSTILE], types=[HOSTILE])
    output.publish([hostile], [known])
    return explored(Place.of(str(tmp_path / "out")), output.pipeline, str(tmp_path / "marks.jsonl"))


def label_of(of: Explored) -> dict[str, Any]:
    return of.queries.some(1)[0]


def pages(of: Explored) -> list[str]:
    row = label_of(of)
    number, image_id = row["entity_id"], row["image_id"]
    return [
        "/", "/entities", "/entities?q=a&type=human&sort=name&min_images=2", f"/entities/Q{number}",
        f"/entities/{number}?sort=-score", "/images", "/images?text=a&script=Latin&sort=-score&min_score=.5",
        f"/images/{image_id}", f"/images/{image_id}/near", f"/images/{image_id}/story", "/rejects", "/mark", "/keys",
        "/similar?text=a",
    ]  # fmt: skip


def test_every_page_of_a_dataset_by_itself_answers(alone: Explored, browser_of: TestClient) -> None:
    for path in pages(alone):
        answer = browser_of.get(path)
        assert answer.status_code == 200, path
        assert "<h1" in answer.text or path.endswith(("/near", "/story")), path
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    story = browser_of.get(f"/images/{label_of(alone)['image_id']}/story").text
    assert "do not lie beside this dataset" in story


def test_the_page_that_one_is_on_is_said(browser_of: TestClient) -> None:
    assert 'href="/entities" aria-current="page"' in browser_of.get("/entities").text
    assert "aria-current" not in browser_of.get("/").text


def test_what_is_not_there_says_so(browser_of: TestClient) -> None:
    for path, status in (
        ("/entities/Q999999999", 404),
        ("/entities/Mercury", 400),
        ("/images/" + "0" * 32, 404),
        ("/images/zz", 404),
        ("/images?sort=size", 400),
        ("/images?offset=-1", 400),
        ("/images/" + "0" * 32 + "/picture", 404),
        ("/mistakes", 404),
        ("/rejects/label/below_bar", 404),
        ("/nowhere", 404),
    ):
        assert browser_of.get(path).status_code == status, path
    assert "tables of the run" in browser_of.get("/rejects/label/below_bar").text


def test_the_way_without_a_script_leads_to_the_one_hit(alone: Explored, browser_of: TestClient) -> None:
    row = label_of(alone)
    one = browser_of.get("/go", params={"q": f"Q{row['entity_id']}"})
    assert one.headers["location"].startswith(("/entities/Q", "/entities?q=Q"))
    assert browser_of.get("/go", params={"q": row["image_id"][:16]}).headers["location"] == f"/images/{row['image_id']}"
    assert browser_of.get("/go", params={"q": "a"}).headers["location"] == "/entities?q=a&with=all"


def test_scripts_get_hits_images_and_pictures(alone: Explored, browser_of: TestClient) -> None:
    row = label_of(alone)
    hits = browser_of.get("/api/hits", params={"q": f"q{row['entity_id']}"}).json()
    assert row["entity_id"] in [hit["entity_id"] for hit in hits]
    told = browser_of.get("/api/images", params={"entity": row["entity_id"], "most": 3}).json()
    assert len(told["rows"]) == min(3, told["total"])
    picture = browser_of.get(f"/images/{row['image_id']}/picture?side=160")
    assert picture.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(picture.content)).size) <= 160


def test_nothing_from_outside_becomes_markup(hostile: Explored) -> None:
    """Catches: captions, names, addresses and typed words with tags in them."""
    asked = client(hostile)
    paths = [*pages(hostile), f"/images?text={HOSTILE}", f"/entities?q={HOSTILE}", f"/similar?text={HOSTILE}"]
    for path in paths:
        page = asked.get(path).text
        assert "<script>document" not in page, path
        assert "<img src=x" not in page, path
        assert "<b>Mercury</b>" not in page, path
    assert asked.get("/api/hits?q=mercury").headers["content-type"] == "application/json"


def test_other_sites_are_not_answered(alone: Explored, tmp_path: Path) -> None:
    """Catches: a page elsewhere that reads a dataset or marks in it through the reader's browser (DNS rebinding,
    cross-site requests)."""
    asked = client(alone)
    row = label_of(alone)
    mark = {"image_id": row["image_id"], "entity_id": row["entity_id"], "mark": "wrong"}
    assert asked.get("/", headers={"host": "evil.example"}).status_code == 403
    assert (
        asked.get("/api/hits?q=a", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}).status_code
        == 403
    )
    for headers in (
        {},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": HOME, "content-type": "text/plain"},
        {"origin": "http://127.0.0.1:9999"},
    ):
        body = json.dumps(mark)
        sent = asked.post("/api/marks", content=body, headers={"content-type": "application/json", **headers})
        assert sent.status_code == 403, headers
    assert not Path(alone.marking.path).exists()


def sent(asked: TestClient, **mark: Any) -> Any:
    headers = {"origin": HOME, "content-type": "application/json"}
    return asked.post("/api/marks", content=json.dumps(mark), headers=headers)


def test_marks_are_written_taken_back_and_kept(hostile: Explored) -> None:
    asked, row = client(hostile), label_of(hostile)
    of = {"image_id": row["image_id"], "entity_id": row["entity_id"]}
    assert sent(asked, **of, mark="wrong").json()["marks"] == 1
    assert 'data-mark="wrong" aria-pressed="true"' in asked.get(f"/images/{row['image_id']}").text
    assert sent(asked, **of, mark="other", other="Q925").status_code == 200
    (mark,) = marks.read(hostile.marking.path).to_pylist()
    assert (mark["mark"], mark["other"], round(mark["probability"], 3)) == ("other", 925, 0.9)
    assert sent(asked, **of, mark="cleared").json()["marks"] == 0
    assert marks.read(hostile.marking.path).num_rows == 0
    for wrong in (
        {"mark": "perhaps"}, {"mark": "other", "other": "Mercury"}, {"mark": "right", "other": "Q5"}, {"image_id": "x"},
        {"entity_id": 1}, {"entity_id": "many"}, {"entity_id": float("inf")}, {"entity_id": 10**48},
    ):  # fmt: skip
        assert sent(asked, **{**of, "mark": "right", **wrong}).status_code == 400, wrong
    assert asked.post("/api/marks", content=b"x" * 99_999, headers={"origin": HOME}).status_code == 403
    Path(hostile.marking.path).write_text("damaged\nmeanwhile\n")
    assert asked.get("/api/implied").status_code == 409
    Path(hostile.marking.path).unlink()
    headers = {"origin": HOME, "content-type": "application/json"}
    assert asked.post("/api/marks", content=b"x" * 99_999, headers=headers).status_code == 413
    assert asked.post("/api/marks", content=b"{", headers=headers).status_code == 400


def test_drawn_labels_are_not_drawn_again_once_marked(alone: Explored, tmp_path: Path) -> None:
    place = Place(alone.pictures._folder, None)
    of = explored(place, None, str(tmp_path / "m.jsonl"), str(tmp_path / "index"))
    asked = client(of)
    first = asked.get("/api/draw").json()
    assert len(first["rows"]) == 10
    assert first["drawn"] == first["left"] == 2000
    for row in first["rows"][:5]:
        sent(asked, image_id=row["image_id"], entity_id=row["entity_id"], mark="right", drawn=True)
    # One that caught the eye is asked for in its turn all the same.
    seen = first["rows"][7]
    sent(asked, image_id=seen["image_id"], entity_id=seen["entity_id"], mark="wrong")
    but = [f"{r['image_id']}:{r['entity_id']}" for r in first["rows"][5:7]]
    then = asked.get("/api/draw", params={"but": but}).json()
    assert [r["image_id"] for r in then["rows"][:3]] == [r["image_id"] for r in first["rows"][7:]]
    assert then["left"] == 1995
    # Another process, and a rebuilt index, know the marks.
    again = explored(place, None, str(tmp_path / "m.jsonl"), str(tmp_path / "other"))
    assert client(again).get("/api/draw").json()["left"] == 1995
    told = asked.get("/api/implied").json()
    assert (told["marks"], told["by_eye"]) == (5, 1)
    assert told["precision"]["missing"] == 25
    assert "recall" not in told


def test_the_story_of_a_run_is_told(with_run: Explored) -> None:
    """On an output of an earlier version, whose ids are bytes."""
    asked, row = client(with_run), label_of(with_run)
    story = asked.get(f"/images/{row['image_id']}/story").text
    assert "What the image said" in story
    assert "What the text said" in story
    assert f"/entities/Q{row['entity_id']}" in story
    assert "<mark>" in story
    for path in pages(with_run):
        assert asked.get(path).status_code == 200, path
    confused = with_run.queries._rows("SELECT * FROM confused")
    assert confused
    lost = asked.get(f"/entities/Q{confused[0]['entity_id']}").text
    assert f"/entities/Q{confused[0]['other_id']}" in lost


def test_rejected_rows_are_listed_and_lead_to_their_story(with_run: Explored) -> None:
    asked = client(with_run)
    reasons = [(s["stage"], r[0], r[1], s["rows_are"]) for s in with_run.stories.funnel() for r in s["reasons"]]
    followed = 0
    for stage, reason, rows, rows_are in reasons:
        page = asked.get(f"/rejects/{stage}/{reason}").text
        assert f"rejected {rows:,} {rows_are}" in page
        links = re.findall(r'href="(/pairs/[0-9a-f]{32}\?unit=[^"]+)"', page)
        for link in links[:1]:
            told = asked.get(link.replace("&amp;", "&")).text
            assert reason in told, (stage, reason)
            followed += 1
        pictures = re.findall(r'src="(/inputs/[^"]+)"', page)
        for picture in pictures[:1]:
            assert asked.get(picture).status_code in (200, 404)
    assert followed > 1


def test_what_was_weighed_and_not_published_is_drawn_with_its_picture(with_run: Explored) -> None:
    drawn = with_run.queries.drawn()
    hidden = [row for row in drawn if with_run.queries.place_of(row["image_id"]) is None]
    assert {row["published"] for row in drawn} == {True, False}
    asked = client(with_run)
    shown = [asked.get(f"/images/{row['image_id']}/picture").status_code for row in hidden[:5]]
    assert set(shown) <= {200}
    told = asked.get("/api/draw").json()
    assert all(row["alt_text"] for row in told["rows"])
    assert "recall" in asked.get("/api/implied").json()


def test_mistakes_are_the_surest_first(tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    images = [image(name, (308, 0, score)) for name, score in (("a", 0.9), ("b", 0.99), ("c", 0.7))]
    output.publish(images, [entity(308, "Mercury", 3, class_index=0), entity(925, "mercury", 0)])
    rows = [
        {"image_id": i["image_id"], "pair_id": i["pair_id"], "entity_id": 308, "truth": truth, "nothing": False,
         "right": right, "probability": i["labels"][0]["score"]}
        for i, truth, right in zip(images, (925, 925, 308), (False, False, True), strict=True)
    ]  # fmt: skip
    schema = pa.schema(
        [("image_id", pa.string()), ("pair_id", pa.string()), ("entity_id", pa.int64()), ("truth", pa.int64()),
         ("nothing", pa.bool_()), ("right", pa.bool_()), ("probability", pa.float32())]
    )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "out" / "judged.parquet")
    asked = client(explored(Place.of(str(tmp_path / "out")), output.pipeline))
    page = asked.get("/mistakes").text
    assert "2 of 3 labels" in page
    assert page.index(images[1]["image_id"]) < page.index(images[0]["image_id"])
    assert images[2]["image_id"] not in page
    assert 'href="/entities/Q925">mercury</a>' in page
    assert "Known to be wrong" in asked.get(f"/images/{images[0]['image_id']}").text
    assert "2 of its labels are known to be wrong" in asked.get("/entities/Q308").text


def test_a_dataset_moved_away_from_its_run_says_what_it_does_not_know(tmp_path: Path, made_up: str) -> None:
    assert Place.of(made_up) == Place(made_up, None)
    assert Place.of(files.folder_of(made_up)) == Place(made_up, None)
    with pytest.raises(NotPublished, match="no published dataset"):
        Place.of(str(tmp_path))


def test_text_is_cut_where_mentions_lie() -> None:
    assert marked("Mercury and Mercury", ["Mercury", None, "gone"]) == [("Mercury", "Mercury"), (" and Mercury", None)]
    spans = [{"start": 0, "end": 3}, {"start": 0, "end": 8}, {"start": 9, "end": 12}]
    assert pieces("New York and", spans) == [("New York", "m1"), (" ", None), ("and", "m2")]
    assert pieces("", []) == []


def test_colours_are_those_of_all_pages(browser_of: TestClient) -> None:
    rules = browser_of.get("/colours.css")
    assert rules.headers["content-type"].startswith("text/css")
    assert palette.variables(palette.DAY) in rules.text
    assert palette.variables(palette.NIGHT) in rules.text.partition("prefers-color-scheme: dark")[2]


def test_half_a_character_is_answered(hostile: Explored) -> None:
    """Catches: JSON's \\ud800, which no answer can hold, quoted by a message."""
    headers = {"origin": HOME, "content-type": "application/json"}
    for body in (
        '{"image_id": "\\ud800", "entity_id": 1, "mark": "wrong"}',
        '{"image_id": "a", "entity_id": "\\udfff", "mark": 1}',
    ):
        assert client(hostile).post("/api/marks", content=body, headers=headers).status_code in (400, 409)
