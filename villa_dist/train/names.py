"""File names of a training job's folder."""

WEIGHTS = "model.safetensors"
DONE = "done.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
