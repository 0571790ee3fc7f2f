"""Clusters in networks of their own: who finds whom, and what stands in the way."""
