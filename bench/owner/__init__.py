"""For owners: a mark in a network of one's own, its key, and what is read from anybody's file."""
