"""`python -m dapo_stages` is the console script `dapo-stages`."""

from dapo_stages.entrypoints.cli import main

if __name__ == "__main__":
    main()
