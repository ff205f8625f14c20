"""`python -m minqkv`."""

from .cli import main

main()
