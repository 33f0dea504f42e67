"""``python -m torchstone.cli``, where the ``torchstone`` script is not on the path."""

from torchstone.cli import main

main()
