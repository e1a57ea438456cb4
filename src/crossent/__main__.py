"""The command line as ``python -m crossent``, for an environment whose scripts are not on the path."""

from crossent.tools.cli import main

if __name__ == "__main__":
    main()
