"""Losses: embeddings or logits and labels in, one number out; their own parameters (proxies) are the module's."""
