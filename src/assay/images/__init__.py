"""From image files to batches: decoding, the cache, augmentation."""
