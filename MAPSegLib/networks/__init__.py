"""The encoder, the heads, and the global-local segmenter built of them (METHOD: paper section 3)."""
