"""Unsupervised domain adaptation: what each method reaches on a target domain, from the same number of steps."""
