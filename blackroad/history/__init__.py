"""What was: events, samples, nodes and ended tasks, from a spool into SQLite or PostgreSQL."""
