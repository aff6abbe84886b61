"""Federated training: the source and the targets stay where they are, and only weights travel."""
