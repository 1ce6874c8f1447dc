"""The suite: every stage with what bounds it, scaling, devices, the whole, and SciPy beside it.

`run` measures and writes JSON, `compare` sets two such files side by side. All measurements are made in
worker processes, so that each finds the device's memory free.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from benchmarks import workloads
from benchmarks.commands import speed
from benchmarks.common import (
    FRESH,
    MEBIBYTE,
    Report,
    answer,
    call_worker,
    describe,
    environment,
    markdown_table,
    measure,
    peak_memory,
    shared_folder,
    temporary,
)
from benchmarks.counting import count
from benchmarks.machine import Limits, bound, measure_limits
from benchmarks.workloads import Stage
from jaxsep.audio import demo_recording
from jaxsep.numerics.devices import over_frames
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

__all__ = ["compare", "run"]

#: Each part is measured in a process of its own.
WORKER = "benchmarks.commands.suite"

#: Two figures nearer than this factor are the same.
SAME = 1.15


def run(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer frames and sizes, and fewer repetitions.")
    ] = False,
    frames: Annotated[
        int | None,
        typer.Option(help="Frames that most stages compute at a time.  [default: 512, quick 128]", min=64),
    ] = None,
) -> None:
    """Times every stage on the default device, with what bounds it, and writes all to JSON."""
    frames = frames or (128 if quick else 512)
    document = call_worker(WORKER, {"part": "stages", "quick": quick, "frames": frames}, {})
    platform = document["environment"]["platform"]
    about = f"{describe(document['environment'])}\n\n{limits_table(document['limits'])}\n"
    about += f"\n{stages_table(document['stages'])}\n\n{scaling_table(document['scaling'])}"
    report = Report(f"suite-{platform}", quick=quick, about=about, worker=True, **document)

    request = {"part": "devices", "quick": quick, "frames": 8 * frames}
    counts = device_counts(document["environment"])
    found = [call_worker(WORKER, {**request, "number": n}, {}) for n in counts]
    report.part("devices", found, "Over devices", devices_table(found))

    found = call_worker(WORKER, {"part": "whole", "quick": quick}, FRESH)
    report.part("whole", found, "The whole", whole_table(found))

    try:
        shared_folder("reference")
    except SystemExit as missing:
        print(f"Nothing is compared with SciPy: {missing}\n")
    else:
        found = call_worker("benchmarks.commands.speed", {"quick": quick}, speed.SINGLE_THREAD)["stages"]
        report.part("scipy", found, "Beside SciPy", speed.table(found))
    report.end()


def work(part: str, **request) -> dict[str, Any]:
    """What a worker measures."""
    return {"stages": measure_stages, "devices": measure_devices, "whole": measure_whole}[part](**request)


# ---- Stages and their scaling ------------------------------------------------------------------------------


def measure_stages(quick: bool, frames: int) -> dict[str, Any]:
    """Limits of the machine, all stages, and how some of them scale."""
    limits = measure_limits(quick)
    rows, scaling = [], []
    for stage in workloads.all_stages(frames):
        rows.append(measure_stage(stage, limits, quick))
        print(f"{stage.name}: {per_frame(rows[-1]):.3g} µs per frame", file=sys.stderr, flush=True)
    for axis, value, stage in scaled_stages(quick, frames):
        scaling.append({"axis": axis, "value": value, **measure_stage(stage, None, quick)})
        print(
            f"{stage.name}, {value} {axis}: {per_frame(scaling[-1]):.3g} µs per frame",
            file=sys.stderr,
            flush=True,
        )
    document = {"environment": environment(), "limits": limits._asdict(), "stages": rows, "scaling": scaling}
    return {**document, "peak_bytes": peak_memory()}


def scaled_stages(quick: bool, frames: int) -> Iterator[tuple[str, int, Stage]]:
    """Over frames, polyphony, bins and batch."""
    factors = (1, 2, 4) if quick else (1, 2, 4, 8)
    for make in (workloads.stft, workloads.rendering, workloads.tone_pursuit):
        for number in (frames // 4 * factor for factor in factors):
            yield "frames", number, make(number)
    for tones in (1, 2) if quick else (1, 2, 4):
        yield "tones per instrument", tones, workloads.polyphonic_pursuit(frames, tones)
    for bins in (512, 1024) if quick else (512, 1024, 2048):
        yield "bins", bins, workloads.pursuit_over_bins(frames, bins)
    for batch in (4, 12) if quick else (4, 12, 48):
        yield "batch", batch, workloads.unet_step(batch)


def measure_stage(stage: Stage, limits: Limits | None, quick: bool) -> dict[str, Any]:
    """Time after compilation, time of compilation, memory; with limits also the work and what bounds it."""
    program = jax.jit(stage.function).lower(*stage.arguments)
    begin = time.perf_counter()
    compiled = program.compile()
    compilation = time.perf_counter() - begin
    timing = measure(lambda: compiled(*stage.arguments), repeats=3 if quick else 10)
    row = {
        "name": stage.name,
        "frames": stage.frames,
        "compile_seconds": compilation,
        "seconds": timing.minimum,
        "median_seconds": timing.median,
        "temporary_bytes": temporary(compiled),
        "device_peak_bytes": device_peak(),
    }
    if limits is not None:
        counted = count(stage.function, *stage.arguments)
        shares = limits.shares(counted, timing.minimum)
        row |= {"work": counted._asdict(), "shares": shares, "bound": bound(shares)}
    return row


def device_peak() -> int | None:
    """Largest memory of the accelerator so far, in bytes; none on a CPU."""
    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")


def per_frame(row: dict[str, Any]) -> float:
    """Microseconds."""
    return 1e6 * row["seconds"] / row["frames"]


# ---- Devices, and the whole --------------------------------------------------------------------------------


def device_counts(record: dict[str, Any]) -> list[int]:
    """One, two, four … devices: as many as there are cores on a CPU, else as many as there are."""
    most = record["cores"] if record["platform"] == "cpu" else record["devices"]
    return [2**k for k in range(most.bit_length()) if 2**k <= most]


def measure_devices(quick: bool, frames: int, number: int) -> dict[str, Any]:
    """Pursuit of frames spread over so many devices, in a process that has these alone."""
    if number > 1:
        # Of a CPU; an accelerator's number is not for us to choose.
        jax.config.update("jax_num_cpu_devices", number)
    devices = jax.devices()[:number]
    spectra, rows = workloads.music(frames), workloads.learned_like()
    pursuit = jax.jit(over_frames(TonePursuit(), devices))
    timing = measure(lambda: pursuit(spectra, rows), repeats=3 if quick else 10)
    loss = float(np.mean(pursuit(spectra, rows).loss))
    return {
        "number": len(devices),
        "frames": frames,
        "seconds": timing.minimum,
        "median_seconds": timing.median,
        "loss": loss,
    }


def measure_whole(quick: bool) -> dict[str, Any]:
    """The demo recording from samples to stems, first with compilation, then without."""
    mixture, _, rate = demo_recording()
    settings = SeparationSettings(**SeparationSettings.FAST) if quick else SeparationSettings()
    runs = []

    def whole():
        runs.append(separate(mixture, rate, 2, settings=settings, key=jax.random.key(0)))

    timing = measure(whole, repeats=1)
    return {
        "settings": "fast" if quick else "default",
        "music_seconds": mixture.size / rate,
        "first_seconds": timing.first,
        "seconds": timing.minimum,
        "parts": runs[-1].seconds,
        "peak_bytes": peak_memory(),
        "device_peak_bytes": device_peak(),
    }


# ---- Tables ------------------------------------------------------------------------------------------------


def limits_table(limits: dict[str, float]) -> str:
    """What the machine can do."""
    units = {
        "elementwise": "elementwise operations, G/s",
        "products": "operations of a matrix product, G/s",
        "transcendental": "exponentials, G/s",
        "moved": "memory, GB/s",
    }
    return markdown_table(["limit", "measured"], [[units[k], f"{v / 1e9:.1f}"] for k, v in limits.items()])


def stages_table(rows: list[dict[str, Any]]) -> str:
    """Markdown; shares are parts of the time at the machine's highest rate of each kind of work."""
    header = ["stage", "frames", "µs per frame", "compilation s", "temporaries MiB", "bounded by"]
    header += ["arithmetic", "products", "exponentials", "memory"]
    cells = [
        [
            row["name"],
            row["frames"],
            per_frame(row),
            f"{row['compile_seconds']:.1f}",
            "" if row["temporary_bytes"] is None else f"{row['temporary_bytes'] / MEBIBYTE:.1f}",
            row["bound"],
            *(f"{100 * share:.0f} %" for share in row["shares"].values()),
        ]
        for row in rows
    ]
    return markdown_table(header, cells)


def scaling_table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    header = ["stage", "over", "", "µs per frame", "compilation s"]
    cells = [
        [row["name"], row["axis"], row["value"], per_frame(row), f"{row['compile_seconds']:.1f}"]
        for row in rows
    ]
    return markdown_table(header, cells)


def devices_table(rows: list[dict[str, Any]]) -> str:
    """Markdown; throughput relative to one device."""
    cells = [
        [
            row["number"],
            row["frames"],
            per_frame(row),
            f"{rows[0]['seconds'] / row['seconds']:.2f}×",
            f"{row['loss']:.6g}",
        ]
        for row in rows
    ]
    return markdown_table(["devices", "frames", "µs per frame", "throughput", "mean loss"], cells)


def whole_table(row: dict[str, Any]) -> str:
    """Markdown of the separation of the demo."""
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["parts"].items())
    header = ["settings", "music s", "first s", "then s", "of which", "peak MiB"]
    cells = [row["settings"], f"{row['music_seconds']:.1f}", f"{row['first_seconds']:.1f}"]
    cells += [f"{row['seconds']:.1f}", parts, f"{row['peak_bytes'] / MEBIBYTE:.0f}"]
    return markdown_table(header, [cells])


# ---- Comparison --------------------------------------------------------------------------------------------


def compare(
    old: Annotated[Path, typer.Argument(help="JSON of an earlier run.", exists=True, dir_okay=False)],
    new: Annotated[Path, typer.Argument(help="JSON of a later run.", exists=True, dir_okay=False)],
    same: Annotated[float, typer.Option(help="Ratios nearer to 1 are not marked.", min=1.0)] = SAME,
) -> None:
    """Ratios new / old of times and memory; what became worse is marked."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in (old, new)]
    for label, document in zip(("old", "new"), documents, strict=True):
        print(f"{label}: {describe(document['environment'])}")
    devices = {(d["environment"]["device"], d["environment"]["processor"]) for d in documents}
    if len(devices) > 1:
        print("The machines differ: so may the times.")
    rows = ratios(*documents)
    if not rows:
        raise SystemExit(f"{new}: expected measurements that {old} has too, got none of the same size")
    print(f"\n{ratios_table(rows, same)}")
    worse = [row for row in rows if row["ratio"] > same]
    print(f"\n{len(worse)} of {len(rows)} figures are worse by more than {same:g}×.")


def figures(document: dict[str, Any]) -> dict[tuple[str, str], float]:
    """All times and memories of a run by name and kind; those of another size have another name."""
    found: dict[tuple[str, str], float] = {}
    for row in document["stages"] + document["scaling"]:
        size = f"{row['value']} {row['axis']}" if "axis" in row else f"{row['frames']} frames"
        name = f"{row['name']}, {size}" + (f" of {row['frames']}" if row.get("axis") == "bins" else "")
        found[name, "µs per frame"] = per_frame(row)
        if row["temporary_bytes"]:
            found[name, "temporaries, MiB"] = row["temporary_bytes"] / MEBIBYTE
    for row in document["devices"]:
        found[f"{row['number']} devices, {row['frames']} frames", "µs per frame"] = per_frame(row)
    whole = document["whole"]
    found[f"whole, {whole['settings']}", "seconds"] = whole["seconds"]
    found[f"whole, {whole['settings']}", "first seconds"] = whole["first_seconds"]
    found[f"whole, {whole['settings']}", "peak, MiB"] = whole["peak_bytes"] / MEBIBYTE
    for row in document.get("scipy", []):
        found[f"{row['name']} on one core", "µs per frame"] = 1e6 * row["seconds_per_frame"]
    return found


def ratios(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Of all figures that both have."""
    before, after = figures(old), figures(new)
    return [
        {
            "name": key[0],
            "kind": key[1],
            "old": before[key],
            "new": after[key],
            "ratio": after[key] / before[key],
        }
        for key in after
        if before.get(key)
    ]


def ratios_table(rows: list[dict[str, Any]], same: float) -> str:
    """Markdown, the worst first."""

    def mark(ratio):
        return "worse" if ratio > same else "better" if ratio < 1 / same else ""

    ordered = sorted(rows, key=lambda row: -row["ratio"])
    cells = [
        [row["name"], row["kind"], row["old"], row["new"], f"{row['ratio']:.2f}×", mark(row["ratio"])]
        for row in ordered
    ]
    return markdown_table(["what", "in", "old", "new", "ratio", ""], cells)


if __name__ == "__main__":
    answer(work)
