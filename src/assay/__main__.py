"""`python -m assay`, which is also what `torchrun -m -- assay ...` and `accelerate launch -m assay ...` start."""

from assay.cli import main

main()
