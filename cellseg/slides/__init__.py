"""Images too large to hold: read by region, cut into blocks, joined across seams, written row by row."""
