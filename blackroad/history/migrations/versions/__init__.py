"""One migration a file; each begins where the one named in `down_revision` ended."""
