"""python -m selfsight, as torchrun needs it."""

from selfsight.cli import main

if __name__ == "__main__":
    main()
