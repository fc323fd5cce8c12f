"""Methods: what a child takes from its parent, and what else happens while it trains; one table names them all."""
