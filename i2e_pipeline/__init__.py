"""I2E: turn noisy web image + alt-text pairs into images labelled with Wikidata entities."""

__version__ = "0.1.0"
