"""`python -m benchmarks NAME [options]` runs a benchmark, prints its tables and writes them as JSON."""

import typer

from benchmarks.commands import (
    ablation,
    artificial,
    blasso,
    corpus,
    corrections,
    evidence,
    fidelity,
    gradients,
    instruments,
    known,
    names,
    neural,
    notes,
    peers,
    plots,
    selection,
    settings,
    speed,
    spikes,
    suite,
    timbre,
    tradeoff,
    training,
)

app = typer.Typer(
    help="Benchmarks of jaxsep. Each prints Markdown tables and writes JSON to benchmarks/results.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for module in (
    fidelity,
    speed,
    artificial,
    corpus,
    selection,
    settings,
    timbre,
    ablation,
    tradeoff,
    blasso,
    spikes,
    neural,
    notes,
    known,
    names,
    peers,
    corrections,
    evidence,
    gradients,
    instruments,
    training,
):
    app.command(module.__name__.rpartition(".")[2])(module.main)
app.command("run")(suite.run)
app.command("compare")(suite.compare)
app.command("plot")(plots.main)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
