"""The encoder, the heads, and the global-local segmenter built of them (section 3 of the paper)."""
