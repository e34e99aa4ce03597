"""`python -m longrope_export`."""

from longrope_export.cli import main

if __name__ == "__main__":
    main()
