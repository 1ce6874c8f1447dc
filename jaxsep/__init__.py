"""Blind separation of the instruments in a music recording, as differentiable JAX modules.

The names below are imported when they are first used: `import jaxsep` alone starts nothing.

The examples of the reference take for granted

    import jax
    import jax.numpy as jnp
    import jaxsep
    import numpy as np
"""

import importlib

_HOME = {
    "AudioError": "files",
    "OutputFolder": "files",
    "demo_recording": "audio",
    "read_audio": "audio",
    "resample": "audio",
    "write_audio": "audio",
    "over_frames": "numerics.devices",
    "GaussianSTFT": "signal.stft",
    "log_frequency_spectrogram": "signal.log_frequency",
    "mel_spectrogram": "signal.filterbanks",
    "constant_q_spectrogram": "signal.filterbanks",
    "griffin_lim": "signal.masks",
    "ratio_masks": "signal.masks",
    "LinearAxis": "signal.axes",
    "LogAxis": "signal.axes",
    "Dictionary": "tones.dictionary",
    "random_instruments": "tones.dictionary",
    "render": "tones.rendering",
    "render_instruments": "tones.rendering",
    "Tones": "tones.tones",
    "LiftedLoss": "pursuit.loss",
    "PeakPursuit": "signal.peaks",
    "Implicit": "numerics.adjoint",
    "Unrolled": "numerics.adjoint",
    "LevenbergMarquardt": "pursuit.refinement",
    "refine": "pursuit.refinement",
    "TonePursuit": "pursuit.tone_pursuit",
    "VoiceModel": "search.voices",
    "deepen": "search.hypotheses",
    "BeurlingLasso": "blasso.lasso",
    "Patterns": "blasso.patterns",
    "Projection": "blasso.projection",
    "alpha_max": "blasso.certificate",
    "support": "blasso.support",
    "UNet": "neural.unet",
    "PolicyNetwork": "neural.network",
    "ToneNetwork": "neural.network",
    "Policy": "neural.policy",
    "Estimator": "neural.estimator",
    "Guide": "neural.imitation",
    "PredictionLoss": "neural.losses",
    "Trainer": "neural.training",
    "Alternation": "search.alternation",
    "Timbre": "tones.dictionary",
    "fit_dictionary": "learning.fit",
    "fit_timbre": "learning.fit",
    "DictionaryLearner": "learning.learner",
    "learn_dictionaries": "learning.restarts",
    "separate": "separation.separate",
    "separate_parts": "separation.parts",
    "separate_neural": "separation.neural",
    "NeuralSettings": "neural.settings",
    "PursuitSeparator": "separation.chain",
    "SeparationSettings": "separation.settings",
    "PursuitSettings": "separation.settings",
    "Separation": "separation.result",
    "SeparationScores": "metrics",
    "best_permutation": "metrics",
    "sdr_sir_sar_filter": "metrics",
    "sdr_sir_sar_gain": "metrics",
    "si_sdr": "metrics",
    "overview": "report.plots",
    "Note": "notes.notes",
    "NoteRule": "notes.notes",
    "find_notes": "notes.notes",
    "write_midi": "notes.formats",
    "spectrogram_figure": "report.spectrograms",
    "Progress": "progress",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name):
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


def _version():
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:
        return "unknown"  # a checkout that is not installed
