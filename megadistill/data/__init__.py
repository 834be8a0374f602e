"""How text becomes batches: corpora -> tokens -> packed rows -> shards on disk -> a pure order -> batches.

`prepare` runs once and writes shards; `stream` reads them. To add a corpus, put one file into `corpora/` (see
its docstring); to change what positions predict, add a subclass of `Targets` to `masking`.
"""
