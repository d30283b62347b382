"""`villa shards`: tools for shards, on local paths or s3://, alike on one process and on Ray."""

from __future__ import annotations

import typer

from cluster.commands import index, pack, reshard, show, stats, verify

app = typer.Typer(name="shards", help="Pack, reshard, verify and look at shards.", no_args_is_help=True)
app.command("pack")(pack.command)
app.command("reshard")(reshard.command)
app.command("verify")(verify.command)
app.command("index")(index.command)
app.command("stats")(stats.command)
app.command("show")(show.command)
