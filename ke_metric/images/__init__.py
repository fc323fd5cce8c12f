"""Images: from a picture's file to the batches that a network sees."""
