"""`python -m cluster` is `villa`."""

from cluster.cli import main

main()
