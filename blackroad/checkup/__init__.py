"""What one machine is like for a node: facts, gathered in a child process, never judged here."""
