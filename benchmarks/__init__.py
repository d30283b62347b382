"""One file a claim. Each prints a small table and one JSON line; figures kept are in results/."""
