"""Students, and how any transformers model answers with signals."""
