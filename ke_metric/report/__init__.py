"""What a lineage shows of itself: which queries a generation mended and which it broke, its worst, its map."""
