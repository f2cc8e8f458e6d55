"""python -m tacit, as torchrun needs it."""

from tacit.cli import main

if __name__ == "__main__":
    main()
