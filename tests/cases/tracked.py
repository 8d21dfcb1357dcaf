"""What trackers took down of a run, read back with their own packages."""

import json
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK = 32768  # bytes


@dataclass
class Seen:
    """A run as its tracker has it."""

    curves: dict[str, list[tuple[int, float]]]
    """Of each metric, epoch and value."""
    settings: dict[str, Any]
    results: dict[str, float]
    texts: dict[str, str]
    status: str


def of_tensorboard(runs: Path, name: str) -> Seen:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(runs / name)).Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }
    started = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    hparams = {
        key: getattr(value, str(value.WhichOneof("kind")))
        for key, value in started.session_start_info.hparams.items()
    }
    results = {tag: points[-1][1] for tag, points in scalars.items() if tag.startswith("result/")}
    curves = {tag: points for tag, points in scalars.items() if tag not in results}
    return Seen(curves, hparams, results, texts, texts.pop("status", ""))


def of_mlflow(runs: Path, name: str) -> Seen:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'kdistill'")
    (run,) = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == name]
    results = {key: value for key, value in run.data.metrics.items() if key.startswith("result/")}
    curves = {
        key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics.keys() - results.keys()
    }
    tags = {key.replace("artifact.", "artifact/"): value for key, value in run.data.tags.items()}
    return Seen(curves, run.data.params, results, tags, run.info.status)


def of_wandb(runs: Path, name: str) -> Seen:
    (file,) = (runs / name).glob("wandb/offline-run-*/run-*.wandb")
    curves: dict[str, list[tuple[int, float]]] = {}
    summary: dict[str, Any] = {}
    config: dict[str, Any] = {}
    status = ""
    for record in _finished(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            assert record.run.display_name == name
        elif kind == "history":
            row = {_key(item): json.loads(item.value_json) for item in record.history.item}
            epoch = next(value for key, value in row.items() if key.endswith("/epoch"))
            for key, value in row.items():
                if not key.startswith("_") and not key.endswith("/epoch"):
                    curves.setdefault(key, []).append((epoch, value))
        elif kind == "summary":
            summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "exit":
            status = str(record.exit.exit_code)
    results = {key: value for key, value in summary.items() if key.startswith("result/")}
    texts = {key: value for key, value in summary.items() if key.startswith("artifact/")}
    return Seen(curves, config, results, texts | {"command": config.pop("command")}, status)


READERS: dict[str, Callable[[Path, str], Seen]] = {
    "tensorboard": of_tensorboard,
    "mlflow": of_mlflow,
    "wandb": of_wandb,
}


def _key(item: Any) -> str:
    return str(item.key) or "/".join(item.nested_key)


def _finished(file: Path, patience: float = 60) -> list[Any]:
    """The records, as soon as the last one is there: W&B's own process writes them."""
    for _ in range(int(patience * 10)):
        found = list(_records(file))
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{file} is not finished after {patience:g} s")


def _records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: after 7 bytes a LevelDB log, whose chunks hold a record or a part of one."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = file.read_bytes()
    place, parts = 7, b""
    while place + 7 <= len(content):
        room = CHUNK - place % CHUNK
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        if place + 7 + length > len(content):  # still being written
            return
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""
