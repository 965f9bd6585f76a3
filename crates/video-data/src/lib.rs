//! Clips in and out: decoding, synthetic worlds, shards, loaders, writers.
