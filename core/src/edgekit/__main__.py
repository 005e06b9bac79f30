"""`python -m edgekit` is the `edgekit` command."""

from edgekit.cli import main

if __name__ == "__main__":  # the workers of mpi4py import it under another name
    main()
