"""A student leaves as a plain folder."""
