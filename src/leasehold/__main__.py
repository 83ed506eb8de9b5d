"""`python -m leasehold` is the command line."""

from leasehold.services.cli import main

if __name__ == "__main__":
    main()
