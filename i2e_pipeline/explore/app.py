"""The web app: pages over the index and the tables, and the few addresses that their scripts ask.

Bound to this machine, and read-only but for marks. Everything from outside (captions, names, addresses) is escaped by
the templates or set as text by the script; whom it answers, guard.py says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from i2e_pipeline.core import packaged
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.explore.guard import Guarded
from i2e_pipeline.explore.index import WINDOW
from i2e_pipeline.explore.marking import Marking
from i2e_pipeline.explore.pictures import NoPicture, Pictures
from i2e_pipeline.explore.queries import PAGE, BadFilter, Queries, entity_number
from i2e_pipeline.explore.similar import NoVectors, Similar
from i2e_pipeline.explore.story import Rejected, Stories
from i2e_pipeline.inputs.marks import MarkError
from i2e_pipeline.pages import palette
from i2e_pipeline.pages.html import environment

_MOST_BODY = 16_384
_ENTITY_FILTERS = (
    "q", "type", "script", "domain", "min_images", "max_images", "min_probability", "max_probability", "min_fame",
    "with", "sort",
)  # fmt: skip
_IMAGE_FILTERS = (
    "entity", "type", "domain", "script", "split", "unit", "mention", "text", "min_score", "max_score", "min_clip",
    "max_clip", "sort",
)  # fmt: skip


@dataclass
class Explored:
    """What the app shows."""

    name: str
    """where the dataset lies, as the reader wrote it"""
    manifest: Mapping[str, Any]
    queries: Queries
    pictures: Pictures
    stories: Stories
    similar: Similar
    marking: Marking


def app(explored: Explored) -> Starlette:
    pages = _Pages(explored)
    get = [
        ("/", pages.home),
        ("/go", pages.go),
        ("/colours.css", pages.colours),
        ("/entities", pages.entities),
        ("/entities/{entity}", pages.entity),
        ("/images", pages.images),
        ("/images/{image:str}", pages.image),
        ("/images/{image:str}/story", pages.image_story),
        ("/images/{image:str}/near", pages.image_near),
        ("/images/{image:str}/picture", pages.picture),
        ("/pairs/{pair:str}", pages.pair),
        ("/inputs/{unit:str}/{shard:int}/{row:int}/picture", pages.input_picture),
        ("/rejects", pages.rejects),
        ("/rejects/{stage:str}/{reason:str}", pages.rejected),
        ("/mistakes", pages.mistakes),
        ("/similar", pages.similar),
        ("/mark", pages.mark),
        ("/keys", pages.keys),
        ("/api/hits", pages.api_hits),
        ("/api/images", pages.api_images),
        ("/api/draw", pages.api_draw),
        ("/api/implied", pages.api_implied),
    ]
    routes = [Route(path, _threaded(call), methods=["GET"]) for path, call in get]
    routes.append(Route("/api/marks", pages.post_mark, methods=["POST"]))
    static = StaticFiles(directory=packaged.folder("i2e_pipeline.explore") / "static")
    handlers: Any = {HTTPException: pages.failed, I2EError: pages.failed}
    return Starlette(
        routes=[*routes, Mount("/static", static)],
        middleware=[Middleware(Guarded), Middleware(GZipMiddleware, minimum_size=2000)],
        exception_handlers=handlers,
    )


def _threaded(call: Callable[[Request], Response]) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        return await run_in_threadpool(call, request)

    return answer


class _Pages:
    def __init__(self, explored: Explored) -> None:
        self.of, self.queries = explored, explored.queries
        self._templates = environment("i2e_pipeline.explore", number=_number, score=_score, share=_share)
        self._templates.globals.update(
            facts=self.queries.facts, dataset=explored.name, with_query=_with_query,
            has_vectors=explored.similar.there, has_mistakes=explored.stories.has_judged, bars=_bars, PAGE=PAGE,
        )  # fmt: skip

    def _page(self, template: str, status: int = 200, **told: Any) -> HTMLResponse:
        return HTMLResponse(self._templates.get_template(template).render(**told), status)

    async def failed(self, request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        status = 400 if isinstance(error, BadFilter) else 409 if isinstance(error, MarkError) else status
        said = getattr(error, "detail", None) or str(error)
        said = said.encode("utf-8", "replace").decode()  # JSON may hold half a character, and a message quotes it
        if request.url.path.startswith("/api/") or request.url.path.endswith("/picture"):
            return JSONResponse({"error": said}, status)
        return self._page("error.html", status, said=said)

    # Pages

    def home(self, request: Request) -> Response:
        return self._page(
            "home.html",
            some=self.queries.some(12),
            most=self.queries.entities({}, most=12)["rows"],
            famous=self.queries.entities({"sort": "fame"}, most=12)["rows"],
            marked=len(self.of.marking),
        )

    def go(self, request: Request) -> Response:
        """Where what was typed leads without a script: to the one hit, or to the list."""
        typed = request.query_params.get("q", "").strip()
        if re.fullmatch(r"[0-9a-fA-F]{8,32}", typed):
            ids = self.queries.ids_beginning(typed.lower())
            if len(ids) == 1:
                return RedirectResponse(f"/images/{ids[0]}", 303)
        hits = self.queries.hits(typed, 2)
        if len(hits) == 1:
            return RedirectResponse(f"/entities/Q{hits[0]['entity_id']}", 303)
        return RedirectResponse(f"/entities?{urlencode({'q': typed, 'with': 'all'})}", 303)

    def colours(self, request: Request) -> Response:
        day, night = palette.variables(palette.DAY), palette.variables(palette.NIGHT)
        rules = f":root {{ {day} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {night} }} }}\n"
        return Response(rules, media_type="text/css")

    def entities(self, request: Request) -> Response:
        asked, offset = _asked(request, _ENTITY_FILTERS), _offset(request)
        return self._page("entities.html", asked=asked, found=self.queries.entities(asked, offset))

    def entity(self, request: Request) -> Response:
        number = entity_number(request.path_params["entity"])
        entity = self.queries.entity(number)
        if entity is None:
            raise HTTPException(404, f"no text of this dataset proposed Q{number}, so nothing is known of it here")
        about = self.queries.about(entity)
        asked = {**_asked(request, _IMAGE_FILTERS), "entity": str(number)}
        others = [row["other_id"] for row in (*about["lost_to"], *about["won_over"])]
        others += [row["entity_id"] for row in (about["of_pairs"] or {}).get("confusions") or ()]
        return self._page(
            "entity.html", entity=entity, about=about, asked=asked, found=self.queries.images(asked, _offset(request)),
            namesakes=self.queries.namesakes(entity), names=self.queries.names_of(others), window=WINDOW,
            wrong=self.of.stories.mistakes_of(number),
        )  # fmt: skip

    def images(self, request: Request) -> Response:
        asked = _asked(request, _IMAGE_FILTERS)
        found = self.queries.images(asked, _offset(request))
        return self._page("images.html", asked=asked, found=found, window=WINDOW)

    def image(self, request: Request) -> Response:
        image_id = _image_id(request)
        path, row, unit = self._place(image_id)
        columns = self.of.pictures.row(path, row)
        labels = columns.pop("labels") or []
        names = self.queries.names_of([label["entity_id"] for label in labels])
        marks = {label["entity_id"]: self.of.marking.mark_of(image_id, label["entity_id"]) for label in labels}
        text = columns.pop("alt_text")
        return self._page(
            "image.html", image_id=image_id, unit=unit, columns=columns, alt_text=text, labels=labels, names=names,
            pieces=marked(text, [label.get("mention") for label in labels]), marks=marks,
            with_run=self.of.stories.there, judged=self.of.stories.judged(image_id),
        )  # fmt: skip

    def image_story(self, request: Request) -> Response:
        image_id = _image_id(request)
        _, _, unit = self._place(image_id)
        return self._story(image_id, unit)

    def _story(self, asked: str, unit: str | None) -> Response:
        story = self.of.stories.told(asked, unit)
        return self._page("story.html", story=story, pieces=pieces)

    def image_near(self, request: Request) -> Response:
        image_id = _image_id(request)
        duplicates = self.queries.near_duplicates(image_id)
        nearest, why = None, None
        if self.of.similar.there:
            try:
                nearest = self.of.similar.to_image(image_id)
            except NoVectors as error:
                why = str(error)
        return self._page("near.html", duplicates=duplicates, nearest=nearest, why=why)

    def picture(self, request: Request) -> Response:
        image_id = _image_id(request)
        side = _side(request)
        place = self.queries.place_of(image_id)
        drawn = None if place else self.of.marking.drawn_of(image_id)
        try:
            if place:
                made = self.of.pictures.thumbnail(place[0], place[1], image_id, side)
            else:
                # What was weighed and not published is still in the input.
                stored = self.of.stories.stored_of(drawn) if drawn else None
                if stored is None:
                    raise NoPicture(f"{image_id} is no image of this dataset")
                made = self.of.pictures.shrunk(stored, image_id, side)
        except NoPicture as error:
            raise HTTPException(404, str(error)) from None
        # An image's id is the hash of its bytes.
        return Response(made, media_type="image/jpeg", headers={"cache-control": "private, max-age=86400, immutable"})

    def input_picture(self, request: Request) -> Response:
        """The image of a row of the input, published or not."""
        of = request.path_params
        name = f"{of['unit']} {of['shard']} {of['row']}"
        try:
            stored = self.of.stories.stored_of(of)
            if stored is None:
                raise NoPicture("the input holds no image there, or is gone")
            made = self.of.pictures.shrunk(stored, name, _side(request))
        except NoPicture as error:
            raise HTTPException(404, str(error)) from None
        return Response(made, media_type="image/jpeg")

    def pair(self, request: Request) -> Response:
        pair = request.path_params["pair"]
        unit = request.query_params.get("unit") or None
        return self._page("pair.html", pair=pair, story=self.of.stories.told(pair, unit), pieces=pieces)

    def rejects(self, request: Request) -> Response:
        return self._page("rejects.html", funnel=self.of.stories.funnel(), with_run=self.of.stories.there)

    def rejected(self, request: Request) -> Response:
        stage, reason = request.path_params["stage"], request.path_params["reason"]
        offset = _offset(request)
        found: Rejected = self.of.stories.rejected(stage, reason, offset, PAGE)
        return self._page("rejected.html", stage=stage, reason=reason, found=found, offset=offset, pieces=pieces)

    def mistakes(self, request: Request) -> Response:
        found = self.of.stories.mistakes(_offset(request), PAGE)
        ids = [i for row in found["rows"] for i in (row["entity_id"], row["truth"]) if i is not None]
        ids += [i for row in found["confused"] for i in (row["entity_id"], row["truth"]) if i is not None]
        return self._page("mistakes.html", found=found, names=self.queries.names_of(ids), offset=_offset(request))

    def similar(self, request: Request) -> Response:
        text = request.query_params.get("text", "").strip()[:300]
        found, why = None, None
        if text:
            try:
                found = self.of.similar.to_text(text)
            except NoVectors as error:
                why = str(error)
        return self._page("similar.html", text=text, found=found, why=why)

    def mark(self, request: Request) -> Response:
        return self._page("mark.html", place=self.of.marking.path, writable=self.of.marking.writable)

    def keys(self, request: Request) -> Response:
        return self._page("keys.html")

    # What the script asks

    def api_hits(self, request: Request) -> Response:
        typed = request.query_params.get("q", "")
        shown = ("entity_id", "name", "description", "images", "coarse_type")
        return JSONResponse([{k: hit[k] for k in shown} for hit in self.queries.hits(typed)])

    def api_images(self, request: Request) -> Response:
        asked, offset = _asked(request, _IMAGE_FILTERS), _offset(request)
        written = request.query_params.get("most", str(PAGE))
        if not re.fullmatch(r"\d{1,4}", written):
            raise BadFilter(f"most: {written!r} is no number")
        most = max(1, min(int(written), 4 * PAGE))
        return JSONResponse(self.queries.images(asked, offset, most))

    def api_draw(self, request: Request) -> Response:
        drawn = self.of.marking.next_drawn(10, set(request.query_params.getlist("but")))
        names = self.queries.names_of([row["entity_id"] for row in drawn["rows"]])
        rows = []
        for row in drawn["rows"]:
            place = self.queries.place_of(row["image_id"])
            text = self.of.pictures.row(place[0], place[1])["alt_text"] if place else self.of.stories.text_of(row)
            entity = names.get(row["entity_id"]) or {}
            rows.append(
                {**row, "alt_text": text, "name": entity.get("name"), "description": entity.get("description"),
                 "coarse_type": entity.get("coarse_type")}
            )  # fmt: skip
        return JSONResponse({**drawn, "rows": rows})

    def api_implied(self, request: Request) -> Response:
        return JSONResponse(self.of.marking.implied())

    async def post_mark(self, request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BODY:
                raise HTTPException(413, "a mark is smaller than that")
        try:
            told = json.loads(body)
            image_id, entity_id, mark = str(told["image_id"]), entity_number(str(told["entity_id"])), str(told["mark"])
            other = told.get("other")
            other = None if other in (None, "") else entity_number(str(other))
            drawn = told.get("drawn") is True
        except (ValueError, KeyError, TypeError) as error:
            raise HTTPException(400, f"no mark: {error}") from None
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        try:
            done = await run_in_threadpool(self.of.marking.add, image_id, entity_id, mark, other, at, drawn)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        except OSError as error:
            raise HTTPException(507, f"the mark was not written: {error}") from None
        return JSONResponse(done)

    def _place(self, image_id: str) -> tuple[str, int, str]:
        place = self.queries.place_of(image_id)
        if place is None:
            raise HTTPException(404, f"{image_id} is no image of this dataset")
        return place


def _asked(request: Request, known: tuple[str, ...]) -> dict[str, str]:
    return {k: v.strip() for k, v in request.query_params.items() if k in known and v.strip()}


def _side(request: Request) -> int:
    written = request.query_params.get("side", "160")
    if not re.fullmatch(r"\d{1,4}", written):
        raise BadFilter(f"side: {written!r} is no number of pixels")
    return int(written)


def _offset(request: Request) -> int:
    written = request.query_params.get("offset", "0") or "0"
    if not re.fullmatch(r"\d{1,12}", written):
        raise BadFilter(f"offset: {written!r} is no number")
    return int(written)


def _image_id(request: Request) -> str:
    image_id: str = request.path_params["image"].lower()
    if not re.fullmatch(r"[0-9a-f]{32}", image_id):
        raise HTTPException(404, f"{image_id} is no image id: 32 hex digits")
    return image_id


def marked(text: str, surfaces: list[str | None]) -> list[tuple[str, str | None]]:
    """The text in pieces, with the surface where it is one: of a dataset alone the places of mentions are not known,
    so the first place where each surface stands."""
    spans: list[tuple[int, int, str]] = []
    for surface in surfaces:
        at = text.find(surface) if surface else -1
        if surface and at >= 0 and all(at >= end or at + len(surface) <= start for start, end, _ in spans):
            spans.append((at, at + len(surface), surface))
    return _cut(text, sorted(spans))


def pieces(text: str, mentions: list[Mapping[str, Any]]) -> list[tuple[str, str | None]]:
    """The cleaned text in pieces, with the id of the mention where one lies; of overlapping ones the longest."""
    spans: list[tuple[int, int, str]] = []
    for n, m in sorted(enumerate(mentions), key=lambda p: p[1]["start"] - p[1]["end"]):
        if all(m["start"] >= end or m["end"] <= start for start, end, _ in spans):
            spans.append((m["start"], m["end"], f"m{n}"))
    return _cut(text, sorted(spans))


def _cut(text: str, spans: list[tuple[int, int, str]]) -> list[tuple[str, str | None]]:
    cut: list[tuple[str, str | None]] = []
    at = 0
    for start, end, name in spans:
        cut += [(text[at:start], None)] if start > at else []
        cut.append((text[start:end], name))
        at = end
    return [*cut, (text[at:], None)] if at < len(text) else cut


def _number(value: int | float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _with_query(path: str, asked: Mapping[str, Any], **changed: Any) -> str:
    """An address with the filters asked for, some of them changed; None takes one away."""
    told = {**asked, **changed}
    query = urlencode({k: v for k, v in told.items() if v not in (None, "")}, quote_via=quote)
    return f"{path}?{query}" if query else path


def _bars(rows: list[Mapping[str, Any]], first: int, last: int) -> list[int]:
    """Counts by bin from `first` to `last`, zeros where no row has one."""
    counts = {row["bin"]: row["n"] for row in rows}
    return [counts.get(b, 0) for b in range(first, last + 1)]
