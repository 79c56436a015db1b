"""``python -m turboprefill`` is the ``turboprefill`` command."""

from turboprefill.cli import main

if __name__ == "__main__":
    main()
