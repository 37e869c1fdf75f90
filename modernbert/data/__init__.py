"""Files to batches: readers, corpus, shards, packing, masking, and labeled rows."""
