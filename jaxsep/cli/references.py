"""True stems and separated ones as files: read, and checked that they belong together."""

from pathlib import Path

import numpy as np

from jaxsep.audio import mono, read_audio

__all__ = ["read_references", "read_stems"]


def read_references(paths: list[Path], num_instruments: int, num_samples: int, sample_rate: int):
    """True stems that belong to a mixture, averaged over channels and cut to one length.

    Arguments:
        paths: a file for each instrument, or none.
        num_instruments: how many there are.
        num_samples: of the mixture, to within 1 %.
        sample_rate: of the mixture, in Hz.

    Returns: samples `[files, samples]`, or None without any.

    Raises: `ValueError` for another number of files, another rate, or a length that differs by more.
    """
    if not paths:
        return None
    if len(paths) != num_instruments:
        raise ValueError(
            f"--reference: expected {num_instruments} files, one for each stem, got {len(paths)}."
        )
    tracks = []
    for path in paths:
        samples, rate = read_audio(path)
        _check_alike(path, samples.shape[1], rate, "the mixture", num_samples, sample_rate)
        tracks.append(mono(samples)[:num_samples])
    return np.stack([track[: min(map(len, tracks))] for track in tracks])


def read_stems(references: list[Path], estimates: list[Path], mixture: Path | None = None):
    """True stems, separated ones and their mixture, averaged over channels and cut to one length.

    Returns: samples `[files, samples]` of both lists, those of the mixture or None, the rate in Hz, and a
    note if something was cut.

    Raises: `ValueError` for lists of two lengths, several rates, or lengths more than 1 % apart.
    """
    if len(references) != len(estimates):
        raise ValueError(
            f"--estimate: expected {len(references)} files as for --reference, got {len(estimates)}."
        )
    paths = references + estimates + ([] if mixture is None else [mixture])
    silent = range(len(references), len(references) + len(estimates))
    recordings = [read_audio(path, allow_silence=n in silent) for n, path in enumerate(paths)]
    rates = [rate for _, rate in recordings]
    lengths = [samples.shape[1] for samples, _ in recordings]
    for path, rate, length in zip(paths, rates, lengths, strict=True):
        _check_alike(path, length, rate, paths[0], lengths[0], rates[0])
    note = f"cut to the shortest, {min(lengths)} samples" if len(set(lengths)) > 1 else ""
    tracks = np.stack([mono(samples[:, : min(lengths)]) for samples, _ in recordings])
    stems = np.split(tracks, [len(references), 2 * len(references)])
    return stems[0], stems[1], None if mixture is None else stems[2][0], rates[0], note


def _check_alike(path, num_samples, rate, other, wanted_samples, wanted_rate):
    if rate != wanted_rate:
        raise ValueError(f"{path} has {rate} samples per second, expected {wanted_rate} as {other} has.")
    if abs(num_samples - wanted_samples) > 0.01 * wanted_samples:
        raise ValueError(f"{path} has {num_samples} samples, expected {wanted_samples} as {other} has.")
