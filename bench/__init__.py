"""Measurements of blackroad on the machine they run on: `python -m bench`."""
