"""Augmentation of a task's training examples for distillation: one file per method.

To add one, write `tasks/augment/<name>.py` with a subclass of `Augment` that has `kind: Literal["<name>"]`.
"""
