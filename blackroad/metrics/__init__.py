"""What Prometheus and other programs read of a node: figures, health, and where all nodes are."""
