"""Teachers: where the signals that a student learns from come from, one file per source.

To add one, write `teachers/<name>.py` with a subclass of `Teacher` that has `kind: Literal["<name>"]`.
"""
