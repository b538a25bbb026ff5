"""`python -m assay`, which is also how `accelerate launch -m assay train ...` starts it."""

from assay.cli import main

main()
