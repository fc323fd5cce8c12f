"""Data sets: making ready, checking and writing out the files of a benchmark."""
