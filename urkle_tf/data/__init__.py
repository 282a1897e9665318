"""Images in, batches of views out: `sources`, `augment`, `pipeline`."""
