"""What strangers and members may try against a closed cluster, with figures (`make abuse`)."""
