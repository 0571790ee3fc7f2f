"""A member of the cluster that says anything at all: what it may not disturb."""
