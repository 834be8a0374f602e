"""Whether a run fits, and what it will take, before any of it runs: parameters, memory, work, disk, time.

`trace` runs one micro-batch without numbers; `memory` says what stands where; `work` counts tokens, operations and
hours; `advice` finds the cheapest change that makes a run fit; `page` prints it all.
"""
