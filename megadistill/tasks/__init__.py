"""Labelled tasks and their metrics."""
