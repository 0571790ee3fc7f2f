"""The live view of the mesh in a terminal: `blackroad top`."""
