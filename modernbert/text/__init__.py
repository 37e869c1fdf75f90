"""Documents -> batches: corpus, tokenizer, shards, packing, masking, stream."""
