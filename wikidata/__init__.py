"""Wikidata as a knowledge base for linking: dump lines in, entities, names and surface forms with priors out.

    reasons.py         why a dump line is not an entity
    schemas.py         the tables that leave this package
    items.py           dump lines -> entities, names, rejects (kernel)
    filters.py         which items are no entities for us, which cannot be seen in a picture
    surface.py         normal form of a name, its lookup keys, which names are admissible
    common_words.py    English words that are no entity when they stand in running text
    priors.py          p(entity | surface), how likely a surface is a mention (kernel)
    anchors.py         pages of Wikipedia's XML -> links and running text (kernel)
    wiki_sql.py        rows of Wikipedia's SQL tables (kernel)
    link_counting.py   links by surface and item, on Spark
    source_files.py    what a source file is, by its first bytes, and its lines
    sources.py         popularity, importance, anchor counts and merged ids from files
    merges.py          where merged ids lead, and what has changed since an older dump
    knowledge_base.py  the same on Spark
    api.py             single items from the live service

Nothing in here knows of images, of models, or of the package that uses it.
"""
