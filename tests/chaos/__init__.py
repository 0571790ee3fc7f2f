"""Real daemons, each in a network of its own, under faults that a seed chooses."""
