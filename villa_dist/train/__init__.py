"""Training: one engine, one loop, and an objective for each of pretrain, mapping and train."""
