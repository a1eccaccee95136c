"""`python -m lorry`, and so `torchrun -m lorry train`: the command line."""

from lorry.cli import main

main()
