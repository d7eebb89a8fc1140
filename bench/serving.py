"""python -m bench.serving: requests per second of a service and how long they take, beside two other servers.

Run it in a project with a champion, such as after make demo. Each server runs by itself with one process of inference.
The load is made by wrk on the same cores, in rounds that take the servers in turn. LitServe is fetched for the time of
the run.
"""

import argparse
import base64
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from bench import report
from bench.project import CommandError
from bench.results import Serving, ServingLoad, save
from bench.run import describe_machine
from bench.serving_tables import serving_section
from kshot.config import load_params
from kshot.data.packed import PackedDataset
from kshot.errors import KshotError
from kshot.servers import free_port
from kshot.tracking import fetch_model
from kshot.workspace import Workspace

CLIENTS = (1, 8, 64)
_WAYS, _SHOTS = 5, 5
_OVER, _OVERLOAD_CLIENTS = 4, 200  # times the usual rate, from clients that do not wait for one another
_CODES = ("200", "503")
_START_S = 120.0
_LITSERVE = ("litserve", "pyzmq")
_APP = Path(__file__).parent / "peers" / "litserve_app.py"
_LUA = """
wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
{headers}
done = function(summary, latency)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  print(string.format('FOUND {{"requests": %d, "seconds": %f, "bad": %d, "p50": %f, "p95": %f, "p99": %f}}',
    summary.requests, summary.duration / 1e6, bad,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request that is sent again and again."""

    path: str
    body: bytes
    content_type: str


@dataclass(frozen=True, kw_only=True)
class Server:
    """`command` has {port} in it; `ready` is a path that answers once the server works."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: str
    asks: Mapping[str, Ask]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        found = measure(options)
    except (CommandError, KshotError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(serving_section(found))
    if options.write:
        save(found, options.write / report.SERVING.name)
    return 0


def measure(options: argparse.Namespace) -> Serving:
    if missing := [name for name in ("wrk", "hey") if shutil.which(name) is None]:
        raise CommandError(f"found no {missing[0]}; need it for the load; next: apt-get install {' '.join(missing)}")
    workspace = Workspace.find()
    params = load_params(workspace.params)
    champion = fetch_model(f"models:/{params.register.model_name}@champion", workspace.root)
    with TemporaryDirectory(prefix="kshot-bench-") as name:
        folder = Path(name)
        pictures = write_pictures(folder / "support", PackedDataset.open(workspace.dataset(params.dataset.name)))
        servers = [*_servers(folder, champion.folder, champion.name, champion.version, pictures, workspace.root)]
        loads = [
            load
            for number in range(options.rounds)
            for server in servers
            for load in _measure(server, pictures, folder, number, options.seconds)
        ]
        overload = _overload(servers[0], pictures, folder, options.seconds)
        soak = _soak(servers[0], pictures, folder, options.soak) if options.soak else None
    return Serving(
        command=" ".join(["python -m bench.serving", *sys.argv[1:]]),
        machine=describe_machine(),
        model=f"{champion.name}, {params.meta_train.algorithm.name}",
        loads=tuple(loads),
        overload=overload,
        soak=soak,
    )


def write_pictures(folder: Path, dataset: PackedDataset) -> dict[str, list[bytes]]:
    """PNGs of `_WAYS` held-out classes: the first `_SHOTS` of each are shown, and the next is asked about."""
    found: dict[str, list[bytes]] = {}
    for number in dataset.class_ids("meta_test")[:_WAYS]:
        items = np.flatnonzero(np.asarray(dataset.labels) == number)[: _SHOTS + 1]
        pictures = []
        for place, item in enumerate(np.asarray(dataset.gather(items))):
            pixels = item.squeeze()
            buffer = io.BytesIO()
            Image.fromarray(255 - pixels if getattr(dataset.item, "invert", False) else pixels).save(buffer, "PNG")
            pictures.append(buffer.getvalue())
            if place < _SHOTS:
                target = folder / f"class{number}" / f"{place}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(pictures[-1])
        found[f"class{number}"] = pictures
    return found


def _servers(
    folder: Path, model: Path, name: str, version: int, pictures: Mapping[str, list[bytes]], root: Path
) -> Iterator[Server]:
    query = next(iter(pictures.values()))[_SHOTS]
    shown = {label: [base64.b64encode(one).decode() for one in of[:_SHOTS]] for label, of in pictures.items()}
    once = json.dumps({"support": shown, "items": [base64.b64encode(query).decode()]}).encode()
    single = {"OMP_NUM_THREADS": "1"}
    log = folder / "service.yaml"
    log.write_text("log: {keep: false}\n", encoding="utf-8")  # as the others, which keep none
    yield Server(
        name="kshot serve",
        command=[sys.executable, "-m", "kshot", "serve", str(model), "--port", "{port}", "--settings", str(log),
                 "--galleries", str(folder / "galleries")],
        environment=single,
        ready="/healthz",
        asks={
            "classify": Ask(path="/v1/galleries/bench/classify", body=query, content_type="image/png"),
            "adapt and classify": Ask(path="/v1/classify", body=once, content_type="application/json"),
        },
    )  # fmt: skip
    beside = folder / "litserve"
    _run(
        [
            "uv",
            "pip",
            "install",
            "--quiet",
            "--python",
            sys.executable,
            "--no-deps",
            "--target",
            str(beside),
            *_LITSERVE,
        ]
    )
    yield Server(
        name="LitServe, adapted at its start",
        command=[sys.executable, str(_APP), str(model), str(folder / "support"), "{port}"],
        environment=single | {"PYTHONPATH": f"{beside}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        ready="/health",
        asks={
            "classify": Ask(
                path="/predict",
                body=json.dumps({"image": base64.b64encode(query).decode()}).encode(),
                content_type="application/json",
            )
        },
    )
    arrays = {label: [np.asarray(Image.open(io.BytesIO(one))).tolist() for one in of] for label, of in pictures.items()}
    inputs = {
        "support_items": [item for of in arrays.values() for item in of[:_SHOTS]],
        "support_labels": [label for label in arrays for _ in range(_SHOTS)],
        "query_items": [next(iter(arrays.values()))[_SHOTS]],
    }
    yield Server(
        name="MLflow's pyfunc server",
        command=[sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{name}/{version}", "--env-manager",
                 "local", "--port", "{port}", "--workers", "1"],
        environment=single
        | {"MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{root.resolve()}/.kshot/mlflow.db"),
           "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        ready="/ping",
        asks={
            "adapt and classify": Ask(
                path="/invocations", body=json.dumps({"inputs": inputs}).encode(), content_type="application/json"
            )
        },
    )  # fmt: skip


def _measure(
    server: Server, pictures: Mapping[str, list[bytes]], folder: Path, number: int, seconds: int
) -> Iterator[ServingLoad]:
    with _running(server, folder) as (url, _):
        _show(server, url, pictures)
        for what, ask in server.asks.items():
            _load(url, ask, folder, clients=2, seconds=2)  # warm
            for clients in CLIENTS:
                found = _load(url, ask, folder, clients=clients, seconds=seconds)
                yield ServingLoad(round=number, server=server.name, what=what, clients=clients, **found)


def _overload(server: Server, pictures: Mapping[str, list[bytes]], folder: Path, seconds: int) -> dict[str, float]:
    """What is answered at four times the rate that eight clients get, and how long a refusal takes."""
    ask = server.asks["classify"]
    with _running(server, folder) as (url, _):
        _show(server, url, pictures)
        usual = _load(url, ask, folder, clients=8, seconds=seconds)["per_s"]
        each_per_s = max(1, round(_OVER * usual / _OVERLOAD_CLIENTS))
        (folder / "body").write_bytes(ask.body)
        command = [
            "hey",
            "-z",
            f"{seconds}s",
            "-c",
            str(_OVERLOAD_CLIENTS),
            "-q",
            str(each_per_s),
            "-o",
            "csv",
            "-m",
            "POST",
        ]
        command += ["-T", ask.content_type, "-D", str(folder / "body"), url + ask.path]
        answers = list(csv.DictReader(io.StringIO(_run(command))))
    times_ms = {
        code: [1000 * float(row["response-time"]) for row in answers if row["status-code"] == code] for code in _CODES
    }
    good, refused = (times_ms[code] or [float("nan")] for code in _CODES)
    return {
        "usual_per_s": usual,
        "asked_per_s": len(answers) / seconds,
        "answered_per_s": len(times_ms["200"]) / seconds,
        "answered_p99_ms": float(np.quantile(good, 0.99)),
        "refused_p50_ms": float(np.median(refused)),
        "refused_p99_ms": float(np.quantile(refused, 0.99)),
        "others": float(len(answers) - sum(map(len, times_ms.values()))),
    }


def _soak(server: Server, pictures: Mapping[str, list[bytes]], folder: Path, seconds: int) -> dict[str, float]:
    """Memory of the service after a minute of load and at its end."""
    ask = server.asks["classify"]
    with _running(server, folder) as (url, process):
        _show(server, url, pictures)
        _load(url, ask, folder, clients=8, seconds=min(60, seconds))
        before = _resident_mib(process.pid)
        _load(url, ask, folder, clients=8, seconds=seconds)
        return {"seconds": float(seconds), "before_mib": before, "after_mib": _resident_mib(process.pid)}


@contextmanager
def _running(server: Server, folder: Path) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    port = free_port()
    log = folder / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [word.format(port=port) for word in server.command],
            stdout=file,
            stderr=file,
            env=os.environ | server.environment,
            start_new_session=True,
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
        while _status(url + server.ready, None) != 200:
            if process.poll() is not None or time.monotonic() > deadline:
                raise CommandError(f"{server.name} does not answer: {log.read_text(errors='replace')[-500:]}")
            time.sleep(0.2)
        yield url, process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _show(server: Server, url: str, pictures: Mapping[str, list[bytes]]) -> None:
    if server.ready != "/healthz":
        return
    for label, of in pictures.items():
        for picture in of[:_SHOTS]:
            path = f"{url}/v1/galleries/bench/classes/{label}/examples"
            if _status(path, Ask(path="", body=picture, content_type="image/png"), "PUT") != 201:
                raise CommandError(f"{path} was not taken")


def _load(url: str, ask: Ask, folder: Path, *, clients: int, seconds: int) -> dict[str, float]:
    return _parsed(_wrk(url, ask, folder, clients=clients, seconds=seconds))


def _wrk(url: str, ask: Ask, folder: Path, *, clients: int, seconds: int) -> "subprocess.Popen[str]":
    body, script = folder / "body", folder / "load.lua"
    body.write_bytes(ask.body)
    headers = f'wrk.headers["Content-Type"] = "{ask.content_type}"'
    script.write_text(_LUA.format(body=body, headers=headers), encoding="utf-8")
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url + ask.path]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _parsed(load: "subprocess.Popen[str]") -> dict[str, float]:
    printed, _ = load.communicate()
    line = next((line for line in printed.splitlines() if line.startswith("FOUND ")), None)
    if line is None:
        raise CommandError(f"wrk said {printed[-300:]!r}")
    found = json.loads(line.removeprefix("FOUND "))
    per_s = {name: found[name] / found["seconds"] for name in ("requests", "bad")}
    times = {f"{name}_ms": found[name] for name in ("p50", "p95", "p99")}
    return {"per_s": per_s["requests"], "bad_per_s": per_s["bad"], **times}


def _status(url: str, ask: Ask | None, method: str = "POST") -> int:
    request = urllib.request.Request(url)  # noqa: S310  # of this machine
    if ask is not None:
        request = urllib.request.Request(  # noqa: S310
            url, data=ask.body, headers={"Content-Type": ask.content_type}, method=method
        )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"{' '.join(command[:3])} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each load")
    parser.add_argument("--soak", type=int, default=0, help="seconds of load between two looks at the memory")
    parser.add_argument("--write", type=Path, help="the folder of bench/ results to keep it in")
    return parser


if __name__ == "__main__":
    sys.exit(main())
