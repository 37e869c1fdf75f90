"""`python -m modernbert`: the command line."""

from modernbert.cli.main import main

if __name__ == "__main__":
    main()
