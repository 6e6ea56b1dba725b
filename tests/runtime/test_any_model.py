"""Models from elsewhere, on real weights: a hub on this machine, split files, a waived failure."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import short
from hub import serving

from pytest_ondevice.formats.gguf import read_header

if TYPE_CHECKING:
    from pathlib import Path


def test_a_download_is_interrupted_and_resumed(gate, shortened, tmp_path):
    """Ctrl-C in the middle; the next run goes on where it ended, checks the digest, and gates."""
    with serving() as hub:
        served = hub.add("org/smol-GGUF", **{"smol-Q4_1.gguf": shortened.read_bytes()})
        file = served["smol-Q4_1.gguf"]
        file.stall = 30_000_000
        environment = gate.environment()
        gate.environment = lambda: environment | hub.environment(tmp_path / "home")
        command = ("-v", "-k", "(loads or planned) and Q4_0")
        first = gate.start(*command, models="hf:org/smol-GGUF")
        part = tmp_path / "home"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = [path.stat().st_size for path in part.rglob("*.incomplete")]
            if found and max(found) >= 20_000_000:
                break
            time.sleep(0.1)
        first.send_signal(signal.SIGINT)
        stopped = gate.finish(first)
        assert stopped.code == 2, stopped.out
        assert (
            f"ondevice: price: {shortened.stat().st_size / 1e6:.0f} MB of download" in stopped.out
        )
        assert "Traceback" not in stopped.out
        file.stall = None
        hub.go.set()
        hub.asked.clear()
        outcome = gate.run(*command, models="hf:org/smol-GGUF")
    assert outcome.code == 0, outcome.out
    assert max(asked.begin or 0 for asked in hub.gets("smol-Q4_1.gguf")) >= 20_000_000
    artifact = outcome.cell("smol-Q4_0")["artifact"]
    assert artifact["source"].startswith("hf:org/smol-GGUF:smol-Q4_1.gguf@")
    assert artifact["source_type"] == "Q4_1"
    # Once it is there the network is not needed any more, nor asked.
    offline = gate.run(*command, "--ondevice-offline", models="hf:org/smol-GGUF")
    assert offline.code == 0, offline.out


def split(source: Path, folder: Path, count: int) -> list[Path]:
    """Split a model as llama-gguf-split does: the first part has the metadata."""
    import gguf

    read = gguf.GGUFReader(source)
    share = -(-len(read.tensors) // count)
    paths = []
    for number in range(count):
        path = folder / f"smol-{number + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            short.add_metadata(writer, {"llama.block_count": short.LAYERS})
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(read.tensors))
        for tensor in read.tensors[number * share : (number + 1) * share]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        short.finish(writer)
        paths.append(path)
    return paths


def test_a_split_source_gives_the_same_artifact(gate, shortened, seed):
    paths = split(shortened, gate.folder, 3)
    outcome = gate.run("-q", "-k", "(loads or size) and Q4_0", models=paths[1].name)
    assert outcome.code == 0, outcome.out
    made = outcome.cell("smol-Q4_0")["artifact"]
    # Of the whole file the store has made one before; the metadata are in another order now.
    tensors = [
        [(tensor.name, tensor.type, tensor.offset) for tensor in read_header(path).tensors]
        for path in (
            seed.artifact("Q4_0"),
            gate.cache / "objects" / made["sha256"][:2] / f"{made['sha256']}.gguf",
        )
    ]
    assert tensors[0] == tensors[1]


def test_a_waived_failure_of_a_real_cell_is_xfail(warm):
    """The whole way: a check fails on real weights, is waived, and the run is green."""
    baselines = warm.folder / "baselines"
    recorded = warm.run("-q", "-k", "file_size and Q4_0", "--ondevice-update=size")
    assert recorded.code == 0, recorded.out
    path = baselines / "portable" / "smollm2-135m" / "Q4_0.json"
    file = json.loads(path.read_text())
    file["sections"]["size"]["quantities"]["file_size"]["value"] *= 0.9
    path.write_text(json.dumps(file))
    failed = warm.run("-q", "-k", "file_size and Q4_0")
    assert failed.code == 1
    (warm.folder / "waivers.toml").write_text(
        '[[waiver]]\ncell = "smollm2-*-Q4_0"\ncheck = "artifact.file_size"\n'
        'reason = "planted"\nexpires = 2999-12-31\n'
    )
    waived = warm.run("-q", "-rx", "-k", "file_size and Q4_0", "--ondevice-waivers=waivers.toml")
    assert waived.code == 0, waived.out
    assert "planted (waived until 2999-12-31)" in waived.out
    assert "1 waived" in waived.out
