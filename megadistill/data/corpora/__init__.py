"""Where text comes from: one file per kind of corpus.

A new kind is one new file here: a subclass of `Corpus` with `kind: Literal["name"] = "name"`, its options as
fields, `sources()` (the independent units of work, such as files) and `documents(source)` (the texts of one
of them).
"""
