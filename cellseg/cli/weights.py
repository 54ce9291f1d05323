"""Commands that bring a network of Cellpose in and give it back: import-cellpose, export-cellpose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cellseg.cli.app import app, say


@app.command("import-cellpose")
def import_cellpose(
    file: Annotated[Path, typer.Argument(help="Weights of Cellpose 2 or 3: cyto3, nucleitorch_0, your own, …")],
    out: Annotated[Path, typer.Option(help="Weights file to write, for example teacher.safetensors.")],
    channels: Annotated[
        tuple[int, int], typer.Option(help="Cells and nuclei, as in Cellpose: 0 grey or none, 1 red, 2 green, 3 blue.")
    ] = (0, 0),
    diam_mean: Annotated[
        float | None, typer.Option(help="Cell diameter the network was trained at; by default what the file says.")
    ] = None,
) -> None:
    """Turn a Cellpose 2 or 3 network into a model for predict, train and adapt.

    Those take Cellpose's file itself as well; import it to choose channels or the diameter.
    """
    from cellseg.checkpoint import save_weights
    from cellseg.models.cellpose_files import read_cellpose

    model, config, about = read_cellpose(file, channels=channels, diam_mean=diam_mean)
    save_weights(out, model, config, about)
    size = sum(parameter.numel() for parameter in model.parameters())
    say(
        f"{file.name}: {size:,} weights; cells are shown at a diameter of {config.reference_diameter:g} px "
        f"(those it was trained on had {about['diameter']:g} px)"
    )
    print(out)


@app.command("export-cellpose")
def export_cellpose(
    model: Annotated[str, typer.Argument(help="Run folder or weights file with network = 'cellpose'.")],
    out: Annotated[Path, typer.Option(help="File to write; Cellpose takes it as pretrained_model.")],
) -> None:
    """Write an adapted Cellpose network as a file that Cellpose 2 and 3 load."""
    from cellseg.checkpoint import load_weights
    from cellseg.core import CellsegError
    from cellseg.models.cellpose_files import write_cellpose

    network, config, about = load_weights(model)
    if config.network != "cellpose":
        raise CellsegError(
            f"{model}: its network is {config.network}, but only network = 'cellpose' fits into Cellpose; "
            "start from an imported Cellpose file (cellseg import-cellpose)"
        )
    write_cellpose(out, network, about)
    say(f"in Cellpose 2 or 3: models.CellposeModel(pretrained_model='{out}'), channels={list(config.channels or ())}")
    print(out)
