"""`villa shards …`: one file a command. Each defines `command`, which `cluster.shards_cli` registers."""
