"""Students: one file per way to build one.

To add one, write `models/students/<name>.py` with a subclass of `Student` that has `kind: Literal["<name>"]`.
"""
