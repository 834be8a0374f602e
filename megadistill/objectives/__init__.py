"""Objectives: one file each, holding config, maths and source.

To add one, write `objectives/<name>.py` with a subclass of `Objective` that has `kind: Literal["<name>"]`, says in
`needs()` what it reads, and builds a callable that returns a `Term` (a sum and what it runs over). Nothing else
changes: the file is found by import, the config union, the JSON schema and the did-you-mean follow.
"""
