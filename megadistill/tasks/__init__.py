"""Tasks: one file per data set or format that a model is fine-tuned on, distilled on and scored with.

To add one, write `tasks/<name>.py` with a subclass of `TokenTask` (text) or `Task` that has `kind: Literal["<name>"]`.
"""
