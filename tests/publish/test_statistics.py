"""What the dataset tells of each entity."""

from __future__ import annotations

from typing import Any

from i2e_pipeline.publish.statistics import OF_KNOWLEDGE_BASE, of_knowledge_base
from wikidata.schemas import ENTITIES


def test_an_entity_has_the_names_of_its_classes_and_the_title_of_its_page(spark: Any) -> None:
    from pyspark.sql.pandas.types import from_arrow_schema

    base = dict.fromkeys(ENTITIES.names) | {
        "name_language": "en", "aliases": [], "types": [], "parents": [], "sitelinks": 3, "statements": 1,
        "name_case": 0, "has_image": False, "visual": 0.5, "is_human": False,
    }  # fmt: skip
    told = [
        {"entity_id": 1, "name": "Mercury", "types": [30, 20, 99], "wikipedia_title": "Mercury (planet)"},
        {"entity_id": 20, "name": "planet"},
        {"entity_id": 30, "name": "celestial body"},
    ]
    rows = [tuple((base | row)[name] for name in ENTITIES.names) for row in told]
    entities = spark.createDataFrame(rows, from_arrow_schema(ENTITIES))
    wanted = spark.createDataFrame([(1,), (20,), (20,), (7,)], "entity_id long")
    found = {r["entity_id"]: r.asDict() for r in of_knowledge_base(entities, wanted).collect()}
    assert found.keys() == {1, 20}
    assert set(found[1]) == {"entity_id", *OF_KNOWLEDGE_BASE}
    assert (found[1]["types"], found[1]["wikipedia_title"]) == (["celestial body", "planet"], "Mercury (planet)")
    assert (found[20]["types"], found[20]["wikipedia_title"]) == ([], None)
