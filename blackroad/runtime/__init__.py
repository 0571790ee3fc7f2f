"""How a task runs: task processes, the server that forks them, what they print and produce."""
