"""Published methods that Knowledge Evolution is compared with."""
