"""Names that several parts share: the training jobs as people read them, and the files of a job's folder."""

TITLES = {
    "one_to_one": "One-to-one VLM",
    "mapping": "Mapping model",
    "villa": "ViLLA",
    "ground_truth": "Ground-truth pairs",
}
JOBS = tuple(TITLES)
CHANCE = "chance"  # the row of random scores, in results and tables
VLMS = tuple(job for job in JOBS if job != "mapping")  # the jobs that are evaluated, baseline first

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
DONE = "done.json"
METRICS = "metrics.jsonl"
MESSAGES = "train.log"
CHECKPOINTS = "checkpoints"
RANKS = "ranks"  # a folder of what each rank is at, while a job trains
STOP = "stop"  # a file that asks a job to save and end
NONFINITE = "nonfinite"  # a folder of the samples at which a loss was not finite
