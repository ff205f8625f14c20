"""`minqkv`, and `python -m minqkv`, which does the same."""


def main():
    """The entry point. Ctrl-C ends it quietly during its imports, too."""
    try:
        from .cli import main

        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":  # MPI workers import this file, too
    main()
