"""`python -m minqkv` does what `minqkv` does."""

from .cli import main

if __name__ == "__main__":  # MPI workers import this file, too
    main()
