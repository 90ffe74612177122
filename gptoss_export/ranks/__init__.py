"""Several processes that share a model, one device each. Rank 0 is the process that loaded the artifact: it starts the
others and tells them each call of its executor, so that all of them run the same programs at the same time."""
