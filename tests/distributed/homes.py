"""Gives each rank a home folder of its own, as nodes may have: a plugin for test_same_teacher."""

import os

os.environ["HOME"] = os.environ["HOMES"].split(":")[int(os.environ["RANK"])]
