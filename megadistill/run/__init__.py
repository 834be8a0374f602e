"""Everything comes together here: the config, the parts built from it, the run directory."""
