"""Tiny models, corpora and process launchers, for tests only."""
