"""``python -m cellseg.cli``."""

from cellseg.cli import main

main()
