"""Imported once by the server that ranks of the tests are forked from: DeepSpeed takes seconds to import."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
os.environ["TORCHDYNAMO_DISABLE"] = "1"
import torch._dynamo  # noqa: F401

import villa_dist.train.jobs  # noqa: F401
