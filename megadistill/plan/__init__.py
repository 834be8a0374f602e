"""Whether a run fits, and what it will take, before any of it runs: parameters, memory, work, disk, time.

`trace` counts what operators make and compute without numbers; `zero` plays what DeepSpeed holds beside; `footprint`
goes through a step with both; `work` counts tokens, operations, bytes and hours; `estimate` does it all for a config,
and finds the cheapest change that makes it fit; `page` prints it.
"""
