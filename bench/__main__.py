"""Every benchmark, each in a separate process: `python -m bench [--quick] [--threads N]`."""

import subprocess
import sys

from .common import PARTS, parse


def main():
    parse(__doc__)
    codes = []
    for part in PARTS:
        print(f"\n=== bench.{part} ===", flush=True)
        codes.append(
            subprocess.run([sys.executable, "-m", f"bench.{part}", *sys.argv[1:]]).returncode
        )
    failed = [
        f"bench.{part} (exit {code})" for part, code in zip(PARTS, codes, strict=True) if code
    ]
    if failed:
        print(f"not finished: {', '.join(failed)}", file=sys.stderr)
    sys.exit(max(codes, key=abs) % 256)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
