"""One file a command. Each defines `command`; `cluster.shards_cli` and `cluster.cli` register them."""
