"""megadistill: distil transformers while pretraining them, from a laptop check to a Slurm cluster."""

__version__ = "0.1.0"
