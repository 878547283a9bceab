from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from i2e_pipeline.core.config import StorageConfig
from i2e_pipeline.dataset.commits import NotPublished
from i2e_pipeline.images.thumbnails import Thumbnails
from i2e_pipeline.report import figures, pictures
from i2e_pipeline.report.figures import Dataset
from i2e_pipeline.report.page import page, write_page
from i2e_pipeline.stages import pipeline
from tests.report.conftest import UNIT, Output, entity, image, judgement, key, png

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
Publish = Callable[..., Output]


@dataclass
class Seen(HTMLParser):
    """Tags with their attributes, as a browser would find them."""

    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if name := dict(attrs).get("id"):
            self.ids.add(name)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def section(html: str, name: str) -> str:
    return html.split(f'<section id="{name}">')[1].split("</section>")[0]


def test_page_is_one_file_that_fetches_nothing(published: Publish) -> None:
    output = published()
    path = write_page(output.pipeline)
    assert path == str(output.root / "report.html")
    seen = Seen(Path(path).read_text(encoding="utf-8"))
    assert all((i["src"] or "").startswith("data:image/jpeg;base64,") for i in seen.all("img"))
    assert not seen.all("link")
    assert [s.get("src") for s in seen.all("script")] == [None, None]
    assert not (output.root / "report_entities").exists()
    assert not re.search(r"url\(|@import", Path(path).read_text(encoding="utf-8"))


def test_files_of_a_delta_table_are_found_by_the_records(published: Publish) -> None:
    output = published()
    delta = output.config.model_copy(update={"storage": StorageConfig.model_validate({"format": "delta"})})
    assert "apple one" in page(pipeline(delta))


def test_contents_lead_somewhere(published: Publish) -> None:
    seen = Seen(page(published().pipeline))
    targets = {(a["href"] or "")[1:] for a in seen.all("a") if (a["href"] or "").startswith("#")}
    assert targets <= seen.ids


def test_a_picture_has_the_command_that_explains_it(published: Publish) -> None:
    """Catches: a label that looks wrong, and no way from the page to the reason."""
    output = published(rejects=[{"reason": "below_bar", "id": key("lost"), "shard": 0, "row": 0}])
    html = page(output.pipeline)
    commands = re.findall(r"<code class=\"why\"[^>]*>([^<]+)</code>", html)
    settings = f"--config {output.root}/config.yaml"
    assert f"i2e explain {key('pear').hex()[:12]} {settings}" in commands
    assert f"i2e explain {key('lost').hex()} {settings}" in commands


def test_least_sure_label_comes_first(published: Publish) -> None:
    unsure = section(page(published().pipeline), "unsure")
    assert unsure.index("apple two") < unsure.index("pear") < unsure.index("apple one")


def test_entities_are_shown_with_name_link_and_figures(published: Publish) -> None:
    html = page(published().pipeline)
    assert 'href="https://www.wikidata.org/wiki/Q89"' in section(html, "entities")
    assert "week" in section(html, "undepicted")
    assert "apple" not in section(html, "undepicted")


def test_entities_in_figures_say_what_they_were_named_and_taken_for(published: Publish) -> None:
    """Catches: a page that fails over a dataset of before, or made with `select.statistics=basic`."""
    basic = published()
    assert "most often against" not in page(basic.pipeline)
    told = {
        "clip_scores_labelled": {"p05": 0.21, "p25": 0.25, "p50": 0.3125, "p75": 0.35, "p95": 0.4},
        "surfaces": [{"surface": "golden delicious", "pairs": 5}],
        "confusions": [{"entity_id": 312, "won": 1_234, "lost": 56}],
    }
    output = published(entities=[entity(89, "apple", 2, **told), entity(312, "Apple Inc.", 0, surfaces=[])])
    figures = section(page(output.pipeline), "entities")
    for said in ("0.312", "0.210–0.400", "golden delicious", "Apple Inc.", "1,234", ">56<"):
        assert said in figures


def test_the_rarest_are_those_that_are_not_among_the_first(published: Publish) -> None:
    many = [entity(n, f"entity {n}.", 100 - n) for n in range(30)]
    rare = section(page(published(entities=many).pipeline), "rare")
    assert re.findall(r"entity \d+", rare) == [f"entity {n}" for n in range(29, 23, -1)]


def test_without_a_manifest_nothing_is_written(published: Publish) -> None:
    output = published()
    (output.root / "i2e" / "manifest.json").unlink()
    with pytest.raises(NotPublished):
        write_page(output.pipeline)
    assert not (output.root / "report.html").exists()


def test_a_dataset_without_images_has_a_page(published: Publish) -> None:
    html = page(published(images=[], entities=[entity(23387, "week", 0)]).pipeline)
    assert "No image was published" in html
    assert "No entity has an image" in html


def test_a_dataset_without_anything_has_a_page(published: Publish) -> None:
    assert "<h1>" in page(published(images=[], entities=[]).pipeline)


@pytest.mark.parametrize("stored", [None, b"", b"not an image", png()[:60], b"\xff\xd8\xff\xe0" + bytes(64)])
def test_bytes_that_cannot_be_decoded_leave_a_gap_and_no_error(published: Publish, stored: bytes | None) -> None:
    broken = image("broken", (89, 0, 0.9), image={"bytes": stored, "path": None})
    html = page(published(images=[broken], entities=[entity(89, "apple", 1)]).pipeline)
    assert "no picture" in html
    assert not Seen(html).all("img")


def test_an_image_of_too_many_pixels_is_not_decoded() -> None:
    assert Thumbnails(max_pixels=100)(png(size=(11, 10))).why == "too_many_pixels"
    assert Thumbnails(max_pixels=110)(png(size=(11, 10))).uri


def test_thumbnails_end_with_the_budget() -> None:
    thumbnail = Thumbnails(max_pixels=10**6, budget=10)
    assert thumbnail(png()).uri
    assert thumbnail(png()).why == "the page is full"


def test_hostile_text_stays_text(published: Publish) -> None:
    """Alt-text, names, descriptions, addresses and details all come from the web."""
    evil = image("evil", (89, 0, 0.9), alt_text=HOSTILE, url="javascript:alert(3)")
    linked = image("quoted", (89, 0, 0.9), url='https://museum.ch/"onmouseover="alert(4)')
    html = page(
        published(
            images=[evil, linked],
            entities=[entity(89, HOSTILE, 2, description=HOSTILE), entity(90, HOSTILE, 0, description=HOSTILE)],
            rejects=[{"reason": "below_bar", "detail": f"best is Q89 {HOSTILE}", "id": key("x")}],
            quality=[
                {"stage": HOSTILE, "slice": HOSTILE, "pairs": 1, "precision": 0.5, "recall": None, "counted": HOSTILE},
            ],
        ).pipeline
    )
    seen = Seen(html)
    assert [s.get("type") for s in seen.all("script")] == ["application/json", None]
    assert 'https://museum.ch/"onmouseover="alert(4)' in {a["href"] for a in seen.all("a")}
    assert all((i["src"] or "").startswith("data:") for i in seen.all("img"))
    assert not [a for _, attributes in seen.tags for a in attributes if a.startswith("on")]
    assert not [a for a in seen.all("a") if (a["href"] or "").startswith("javascript")]


def test_rejects_are_shown_with_their_sentence_and_their_entity(published: Publish) -> None:
    html = section(
        page(
            published(
                rejects=[{"reason": "below_bar", "detail": "best is Q89 with 0.352, bar 0.805", "id": key("x")}]
            ).pipeline
        ),
        "reasons",
    )
    assert "No candidate is likely enough" in html
    assert '<a href="https://www.wikidata.org/wiki/Q89">apple (Q89)</a> with 0.352' in html
    assert "bracket" in html


def with_input(output: Output, texts: list[str], stored: bytes | None = None) -> None:
    """An input shard that the rejects' rows lie in, and its unit's record. `stored`: each row's image."""
    path = output.root / "input.parquet"
    rows = [{"caption": text, "jpg": stored or png(), "url": "http://x.org"} for text in texts]
    pq.write_table(pa.Table.from_pylist(rows), path)
    record = {
        "name": UNIT,
        "files": [{"shard": 0, "path": str(path), "size": 1, "modified": 1, "digest": "00", "rows": len(texts)}],
    }
    (output.root / "units").mkdir()
    (output.root / "units" / f"{UNIT}.json").write_text(json.dumps(record))


def test_a_rejected_pair_is_shown_from_the_input(published: Publish) -> None:
    output = published(rejects=[{"reason": "below_bar", "detail": "no", "id": key("x"), "shard": 0, "row": 1}])
    with_input(output, ["first", "the rejected one"])
    assert "the rejected one" in section(page(output.pipeline), "reasons")


def test_a_rejected_image_that_is_none_says_why(published: Publish) -> None:
    """Catches: rejected bytes opened with every plugin of Pillow; a gap on the page without a word."""
    output = published(rejects=[{"reason": "unsupported_format", "detail": "no", "id": key("x"), "shard": 0, "row": 0}])
    with_input(output, ["a poster"], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    html = section(page(output.pipeline), "reasons")
    assert "no picture: unsupported_format" in html
    assert not Seen(html).all("img")


@pytest.mark.parametrize("row", [2, 10**9])
def test_input_that_is_gone_or_changed_is_left_out(published: Publish, row: int) -> None:
    output = published(rejects=[{"reason": "below_bar", "detail": "no", "id": key("x"), "shard": 0, "row": row}])
    assert "below_bar" in page(output.pipeline)
    with_input(output, ["first", "second"])
    assert "below_bar" in page(output.pipeline)


def test_examples_are_few_and_different(published: Publish) -> None:
    same = [{"reason": "below_bar", "detail": "again", "id": key(str(n))} for n in range(20)]
    other = [{"reason": "below_bar", "detail": f"other {n}", "id": key(f"o{n}")} for n in range(20)]
    examples = pictures.rejected_examples(Dataset.open(published(rejects=same + other).pipeline), 3, Thumbnails(10**6))
    assert [e.detail for e in examples["label", "below_bar"]] == ["again", "other 0", "other 1"]


def test_units_that_are_not_published_are_not_read(published: Publish) -> None:
    """Catches: a folder listing, or the commit of a unit that was dropped from the dataset."""
    output = published()
    output.commit("publish", "u-dropped", {"i2e/images": [image("dropped", (89, 0, 0.1))]}, rows_out=1)
    output.commit("label", "u-dropped", {"labels": []}, [{"reason": "too_long", "detail": "dropped too"}])
    output.table("i2e/images", [image("uncommitted", (89, 0, 0.1))], f"unit={UNIT}-killed")
    html = page(output.pipeline)
    assert "dropped" not in html
    assert "uncommitted" not in html


def test_the_choice_does_not_depend_on_the_order_of_rows(published: Publish) -> None:
    images = [image(f"n{n}", (89, 0, 0.8 + n / 100)) for n in range(12)]
    wanted = [key("n7").hex(), key("gone").hex()]
    config = published(images=images, entities=[entity(89, "apple", 12)]).pipeline
    names = []
    for rows in (images, images[::-1]):
        published(images=rows, entities=[entity(89, "apple", 12)])
        dataset = Dataset.open(config)
        choice = pictures.choose(dataset, [89], per_entity=3, at_random=4, least_sure=2, image_ids=wanted)
        shown = pictures.read(dataset, choice.places(), Thumbnails(10**6), first=choice.named.values())
        assert {i: shown[place].alt_text for i, place in choice.named.items()} == {wanted[0]: "n7"}
        names.append(
            [
                [shown[p].alt_text for p in places]
                for places in (choice.at_random, choice.least_sure, choice.of_entity[89])
            ]
        )
    assert names[0] == names[1]
    assert [len(n) for n in names[0]] == [4, 2, 3]
    assert names[0][1] == ["n0", "n1"]


def test_an_image_of_two_labels_is_chosen_once(published: Publish) -> None:
    config = published(images=[image("both", (89, 0, 0.81), (434, 1, 0.82))]).pipeline
    choice = pictures.choose(Dataset.open(config), [], per_entity=1, at_random=5, least_sure=5)
    assert len(choice.at_random) == len(choice.least_sure) == 1


def test_best_candidate_of_a_pair_is_counted_once(published: Publish) -> None:
    scores = figures.scores(Dataset.open(published(images=[image("both", (89, 0, 0.9), (434, 1, 0.82))]).pipeline))
    assert scores.pairs == 1
    assert scores.probability[0].sum() == 1


def test_histograms_are_cut_to_what_is_filled_and_lose_nothing() -> None:
    rng = np.random.default_rng(0)
    for low, high in ((0.1, 0.35), (0.0, 1.0), (0.25, 0.2501)):
        values = rng.uniform(low, high, 500)
        counts = np.histogram(values, figures.BINS, figures.CLIP_RANGE)[0]
        drawn = figures.filled((counts, counts // 2), *figures.CLIP_RANGE)
        assert sum(drawn.kept) == 500
        assert sum(drawn.rejected) == (counts // 2).sum()
        assert len(drawn.kept) == len(drawn.rejected) <= 41
        assert drawn.low <= values.min() + 1e-9
        assert drawn.high >= values.max() - 1e-9


def test_precision_is_told_apart_by_slice(published: Publish) -> None:
    html = page(
        published(
            quality=[
                {
                    "stage": "published", "slice": name, "pairs": of, "counted": "c",
                    "precision": p, "precision_of": of, "recall": 0.5, "recall_of": of,
                }
                for name, p, of in (("all", 0.95, 200), ("colliding: yes", 0.84, 30), ("hand: mdi", 0.31, 29))
            ]
        ).pipeline
    )  # fmt: skip
    # Wilson (1927): 190 of 200.
    assert "95.0 %" in html
    assert "95 % interval 91.0 to 97.3 %" in html
    right = section(html, "right")
    shown, _, folded = right.partition("1 slice of fewer than 30 pairs")
    assert "colliding: yes · 30" in shown
    assert "P 0.840" in shown
    assert "hand: mdi" not in shown
    assert "hand: mdi · 29" in folded
    assert "the axis begins at 0.3, not at 0" in shown
    assert '<td class="n">0.310</td><td class="n">0.172–0.492</td><td class="n">29</td>' in folded


def test_figures_of_before_counts_were_kept_have_no_interval(published: Publish) -> None:
    figure = {"stage": "published", "slice": "all", "pairs": 10, "precision": 0.95, "recall": 0.5, "counted": "c"}
    html = page(published(quality=[figure]).pipeline)
    assert "P 0.950" in section(html, "right")
    assert "95 % interval" not in html.split("</header>")[0]


def test_how_far_probabilities_can_be_believed_stands_in_a_table(published: Publish) -> None:
    """Bins that hold nothing are left out, and figures of before these were counted have no table."""
    figure = {"stage": "label", "slice": "all", "pairs": 10, "precision": 0.9, "recall": 0.5, "counted": "c"}
    bins = [{"bin": n, "labels": 0, "expected": 0.0, "right": 0.0} for n in range(10)]
    bins[9] = {"bin": 9, "labels": 1_200, "expected": 1_152.0, "right": 1_020.0}
    none = {"none": 455, "none_labelled": 40, "wrong_on_none": 41}
    by_type = [
        {"coarse_type": "taxon", "labels": 1_000, "expected": 960.0, "right": 900.0, "calibration_error": 0.06},
        {"coarse_type": None, "labels": 200, "expected": 192.0, "right": 120.0, "calibration_error": 0.36},
        {"coarse_type": "film", "labels": 29, "expected": 28.0, "right": 27.0, "calibration_error": 0.034},
    ]
    believed = {"calibration_error": 0.11, "reliability": bins, "reliability_by_type": by_type}
    html = page(published(quality=[{**figure, **none, **believed}]).pipeline)
    right = section(html, "right")
    assert "labels on images of nothing known: 40 of 455 images (41 labels)" in right
    assert "0.110" in right
    rows = [
        re.sub(r"<svg.*?</svg>", "", row).replace('</td><td class="n">', "|").replace('</td><td class="line">', "|")
        for row in re.findall(r"<tr><td>(.*?)</td></tr>", right.split('id="reliability"')[1])
    ]
    assert rows == [
        "0.9–1.0|1,200||0.960|0.850|0.829–0.869",
        "taxon|1,000||0.960|0.900|0.880–0.917|0.060",
        "of no known type|200||0.960|0.600|0.531–0.665|0.360",
        "film|29||0.966|0.931|0.780–0.981|0.034",
    ]
    assert "1 kind of fewer than 30 labels" in right
    assert right.index("fewer than 30 labels") < right.index("film")
    assert 'id="reliability"' not in page(published(quality=[figure]).pipeline)


def test_what_has_changed_since_an_older_knowledge_base_is_said(published: Publish) -> None:
    output = published()
    assert "took the place of an older one" not in Path(write_page(output.pipeline)).read_text(encoding="utf-8")
    path = output.root / "i2e" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["knowledge_base"]["changes"] = {"added": 1234, "changed": 5, "removed": 0, "merged": 2}
    path.write_text(json.dumps(manifest))
    said = section(Path(write_page(output.pipeline)).read_text(encoding="utf-8"), "made")
    assert "1,234 entities added, 5 entities changed, 0 entities removed, 2 entities merged" in said


def test_cost_is_stretched_to_a_billion_pairs(published: Publish) -> None:
    costs = {c.stage: c for c in figures.costs(Dataset.open(published().pipeline))}
    assert costs["label"].core_hours == pytest.approx(1.5 / 3 * figures.cores_used(published().config) * 1e9 / 3600)
    assert costs["finish"].core_hours is None


def test_page_of_many_pictures_stays_small(published: Publish) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    stored = {"bytes": stream.getvalue(), "path": None}
    images = [image(f"n{n}", (n % 40, n % 40, 0.9), image=stored) for n in range(240)]
    rest = [entity(n, f"a name of an entity, and {n}", 1, description="d" * 90) for n in range(40, 3_600)]
    html = page(published(images=images, entities=[*(entity(n, f"e{n}", 6) for n in range(40)), *rest]).pipeline)
    assert "and 3599" in html
    assert len(html) < 3_000_000


def test_a_label_that_is_sure_and_wrong_comes_first_and_says_what_is_shown(published: Publish) -> None:
    html = page(
        published(
            judged=[
                judgement("apple one", 89, 434, False, probability=0.95),
                judgement("apple two", 89, None, False, nothing=True, probability=0.97),
                judgement("pear", 434, 434, True),
            ]
        ).pipeline
    )
    mistakes = section(html, "mistakes")
    assert "2 of 3 published labels of known truth are wrong (66.7 %; 95 %: 20.8 to 93.9 %)" in mistakes
    first, second = mistakes.split("<figure>")[1:]
    assert "apple two" in first
    assert "0.97" in first
    assert "shows nothing of the knowledge base" in first
    assert 'shows <a href="https://www.wikidata.org/wiki/Q434" rel="noreferrer">pear</a>' in second
    assert f"i2e explain {key('apple one').hex()[:12]} --config" in second
    # Wherever the page shows the image, it says that its label is wrong.
    assert section(html, "look").count('<span class="wrong">wrong: shows') == 2


def test_without_a_known_truth_no_mistake_is_spoken_of(published: Publish) -> None:
    html = page(published().pipeline)
    assert 'id="mistakes"' not in html
    assert "#mistakes" not in html


def test_where_all_labels_are_right_the_page_says_so(published: Publish) -> None:
    html = page(published(judged=[judgement("pear", 434, 434, True)]).pipeline)
    assert "None of 1 published labels of known truth is wrong" in section(html, "mistakes")


def test_a_mistake_whose_image_is_no_longer_published_is_counted_and_not_shown(published: Publish) -> None:
    """Catches: figures of before a dataset was made smaller, and a report that dies of them."""
    mistakes = section(page(published(judged=[judgement("gone", 89, 434, False)]).pipeline), "mistakes")
    assert "1 of 1 published labels" in mistakes
    assert "<figure>" not in mistakes


def test_mistakes_have_their_pictures_before_the_page_is_full(published: Publish) -> None:
    output = published()
    dataset = Dataset.open(output.pipeline)
    choice = pictures.choose(dataset, [], 1, at_random=9, least_sure=9, image_ids=[key("pear").hex()])
    shown = pictures.read(dataset, choice.places(), Thumbnails(10**6, budget=10), first=choice.named.values())
    assert [p.alt_text for p in shown.values() if p.thumbnail.uri] == ["pear"]


@pytest.mark.parametrize(
    ("url", "leads"),
    [
        ("https://upload.wikimedia.org/a.jpg", True),
        ("http://1.1.1.1/a.jpg", True),
        ("https://xn--bcher-kva.example/a.jpg", False),
        ("https://img-8.example.org/d8/a.jpg", False),
        ("https://example.org", False),
        ("https://notexample.org/a.jpg", True),
        ("http://localhost:8000/a.jpg", False),
        ("http://nas/a.jpg", False),
        ("http://camera.local./a.jpg", False),
        ("http://10.0.0.7/a.jpg", False),
        ("http://[::1]/a.jpg", False),
        ("http://[broken/a.jpg", False),
        ("http://./a.jpg", False),
        ("ftp://museum.ch/a.jpg", False),
        ("javascript:alert(1)", False),
        (None, False),
    ],
)
def test_links_lead_to_hosts_that_can_be(url: str | None, leads: bool) -> None:
    """Catches: links of the sample's made-up addresses, and of those that only a crawler's own network knows."""
    assert pictures.web_address(url) == (url if leads else None)


def test_what_stages_took_is_told_from_runs_that_say_something(published: Publish) -> None:
    few = section(page(published().pipeline), "cost")
    assert "i2e plan --pairs" in few
    assert "<table>" not in few
    output = published()
    path = output.root / "i2e" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["funnel"][0]["rows_in"] = 100_000
    path.write_text(json.dumps(manifest))
    assert "<table>" in section(page(output.pipeline), "cost")
