"""Extract: names in alt-text. Pure kernels over Arrow batches; Spark only carries them."""
