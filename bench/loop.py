"""python -m bench.loop: a model in use, a world that changes, and the way back, on drawn characters.

Run it in a project whose registry has the champion of `make demo`. A service shows a gallery of symbols that the model
never saw. It is asked in fonts that the model knows, then in one that it does not know, and `kshot monitor` looks after
each. What people say is right becomes items of a dataset, on which the next version is trained beside the glyphs, and
examples of the gallery.
"""

import argparse
import io
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

import httpx
import numpy as np
from PIL import Image

from bench.project import CommandError, kshot_command, write_params
from bench.project import run as run_command
from kshot.client import Client
from kshot.errors import KshotError
from kshot.ingest.glyphs import Faces, distorted
from kshot.servers import free_port
from kshot.workspace import Workspace
from kshot.yaml_file import read_yaml

SYMBOLS = "!#$%&()*+/<=>?@[]{}~"
KNOWN, NEW = ("DejaVuSans", "DejaVuSerif", "STIXGeneral"), ("cmtt10",)
_GALLERY, _UNION = "symbols", "glyphs-and-symbols"
_SHOTS, _ASKED = 5, 12  # pictures of each symbol
_START_S = 120.0


def main(arguments: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m bench.loop", description=__doc__).parse_args(arguments)
    try:
        run(Workspace.find().root.resolve())
    except (CommandError, KshotError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(root: Path) -> None:
    name = read_yaml(root / "params.yaml")["register"]["model_name"]
    exported = root / ".kshot" / "loop" / _GALLERY
    shutil.rmtree(exported.parent, ignore_errors=True)
    exported.parent.mkdir(parents=True)
    settings, answers = exported.parent / "service.yaml", exported.parent / "answers"
    settings.write_text("log: {pictures: true, flush_s: 0.2}\n", encoding="utf-8")
    serve = ("--settings", str(settings), "--galleries", str(exported.parent / "galleries"), "--answers", str(answers))
    watch = ("monitor", _GALLERY, "--answers", str(answers), "--window", "200", "--reference", "200")

    with _served(root, f"models:/{name}@champion", *serve) as (client, url):
        for symbol in SYMBOLS:
            client.add(_GALLERY, class_of(symbol), drawn(symbol, KNOWN, _SHOTS, stream=1))
        _ask(client, KNOWN, stream=2)
        _say("fonts that the model knows", _ask(client, KNOWN, stream=3))
        print(_kshot(root, *watch))
        _say("a font that it never saw", _ask(client, NEW, stream=4, corrected=True))
        print(_kshot(root, *watch))
        print(_kshot(root, "gallery", "export", _GALLERY, str(exported), "--answers", str(answers), "--url", url))
        _say("the same font, other pictures", _ask(client, NEW, stream=5))
        for symbol in SYMBOLS:
            client.add(_GALLERY, class_of(symbol), drawn(symbol, NEW, 1, stream=4))
        _say("with one example of it in each class of the gallery", _ask(client, NEW, stream=5))

    version = _train_with(root, exported)
    with _served(root, f"models:/{name}/{version}", *serve) as (client, _):
        _say("the version that learned from it, the same gallery", _ask(client, NEW, stream=5))
        _say("and in the fonts of before", _ask(client, KNOWN, stream=3))


def class_of(symbol: str) -> str:
    return f"U+{ord(symbol):04X}"


def drawn(symbol: str, faces: Sequence[str], n_pictures: int, *, stream: int) -> list[bytes]:
    """PNGs of a symbol in these fonts by turns, each distorted by other draws than those of another stream."""
    fonts = Faces(faces)
    masters = [fonts.master(faces[number % len(faces)], symbol) for number in range(n_pictures)]
    pictures = []
    for pixels in distorted(np.stack(masters), 2**24 * stream + ord(symbol)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    return pictures


def _ask(client: Client, faces: Sequence[str], *, stream: int, corrected: bool = False) -> float:
    """The fraction of right answers about pictures of all symbols; the right class of each is told, where asked for."""
    asked = [(symbol, picture) for symbol in SYMBOLS for picture in drawn(symbol, faces, _ASKED, stream=stream)]
    right = 0
    for symbol, picture in random.Random(stream).sample(asked, len(asked)):  # noqa: S311  # an order of questions
        (answer,) = client.classify(_GALLERY, [picture])
        right += answer["class"] == class_of(symbol)
        if corrected:
            client.correct(answer["id"], class_of(symbol))
    time.sleep(1)  # until the log is written
    return right / len(asked)


def _train_with(root: Path, exported: Path) -> int:
    """Pack what came back, and train the next version on it and the glyphs. Its number."""
    splits = exported.parent / "splits.csv"
    lines = ["class,split", *(f"{class_of(symbol)},meta_train" for symbol in SYMBOLS)]
    splits.write_text("\n".join(lines) + "\n", encoding="utf-8")
    pack = ("--name", _GALLERY, "--image-size", "28", "--mode", "grey", "--splits", str(splits))
    print(_kshot(root, "ingest", str(exported), *pack))
    params = read_yaml(root / "params.yaml")
    write_params(root, params | {"dataset": {"name": _UNION, "of": ["glyphs", _GALLERY]}})
    printed = run_command([sys.executable, "-m", "flows.train"], root, root / "src").printed
    found = re.search(r"^registered +\S+ version (\d+), new.*\n(?:.+\n)*?promotion.*$", printed, re.MULTILINE)
    if found is None:
        raise CommandError(f"the run has registered no new version: {printed[-300:]}")
    print(found[0])
    return int(found[1])


@contextmanager
def _served(root: Path, model: str, *options: str) -> Iterator[tuple[Client, str]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = kshot_command("serve", model, "--port", str(port), *options)
    with TemporaryFile() as log, subprocess.Popen(command, cwd=root, stderr=log) as process:
        try:
            _wait_for(url, process)
            with Client(url) as client:
                yield client, url
        finally:
            process.terminate()


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/healthz").status_code == 200:
                return
        time.sleep(0.2)
    raise CommandError(f"no service at {url}; see above")


def _kshot(root: Path, *arguments: str) -> str:
    return run_command(kshot_command(*arguments), root, root / "src").printed.rstrip()


def _say(what: str, right: float) -> None:
    print(f"{what}: {right:.1%} of {_ASKED * len(SYMBOLS)} answers are right", flush=True)


if __name__ == "__main__":
    sys.exit(main())
