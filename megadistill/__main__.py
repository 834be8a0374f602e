"""`python -m megadistill`: the same command line, as torchrun and srun start it."""

from megadistill.cli import main

if __name__ == "__main__":
    main()
