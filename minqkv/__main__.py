"""`python -m minqkv` is the command."""

from .cli import main

if __name__ == "__main__":  # MPI workers import this file, too
    main()
