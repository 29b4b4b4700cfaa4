"""The console script, `lazyfs`."""

import sys


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    words = sys.argv[1:]
    if "run" in words:
        from lazyfs.cli.early import ask_early

        ask_early(words)
    # Not before: from a cold page cache these imports take as long as an image does to open.
    from lazyfs.cli.app import run

    sys.exit(run(words))


if __name__ == "__main__":
    main()
