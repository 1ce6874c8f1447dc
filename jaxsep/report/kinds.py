"""Kinds of spectrograms and their titles; needs no JAX."""

__all__ = ["KINDS"]

KINDS = {
    "log": "log-frequency spectrogram from peaks",
    "mel": "mel spectrogram",
    "cqt": "constant-Q spectrogram",
    "linear": "short-time Fourier transform",
}
