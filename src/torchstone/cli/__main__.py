"""``python -m torchstone.cli``, where the ``torchstone`` script is not on the path."""

from torchstone.cli import main

if __name__ == "__main__":  # worker processes import this module too
    main()
