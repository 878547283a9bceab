"""Link: from names in a text to the entities they may mean, with probabilities."""
