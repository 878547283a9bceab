"""A second look at what linking is unsure of: neural rerankers, their training, and the stage that asks them."""
