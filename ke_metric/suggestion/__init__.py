"""A recipe proposed from pictures: what they are, which fields follow from that, and what a training takes here."""
