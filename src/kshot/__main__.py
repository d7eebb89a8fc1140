"""`python -m kshot`, for dvc.yaml and for where the script is not on the path."""

from kshot.cli.app import main

if __name__ == "__main__":
    main()
