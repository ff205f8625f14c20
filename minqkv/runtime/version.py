"""The version, and a fingerprint of the code that decides a run's result."""

from functools import lru_cache

__version__ = "0.2.0"


NOT_IN_A_RESULT = {"cli", "render", "teach"}  # they only read results, or print


@lru_cache
def code_version():
    """A hash over every file that can change a run's result: the same one, the same code."""
    import hashlib  # here, because every command imports this file
    from pathlib import Path

    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        place = path.relative_to(package)
        if path.suffix in (".py", ".cu", ".cuh") and place.parts[0] not in NOT_IN_A_RESULT:
            digest.update(place.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{__version__}-{digest.hexdigest()[:12]}"
