"""blackroad: a shelf of mixed machines as one Python executor."""

__version__ = "0.1.0"
