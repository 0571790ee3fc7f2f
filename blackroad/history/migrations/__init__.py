"""How the tables became what they are, step by step; `versions/` holds one file a step."""
