"""What else separates or bounds a separation: each as a function of the mixture, or of the true stems."""

import contextlib
import importlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import soundfile
from jaxtyping import Float

from benchmarks.commands.corpus import oracle_stems
from benchmarks.common import Piece
from jaxsep.notes.notes import find_notes
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

#: The transform of the peers, as is usual in the literature: a Hann window of 93 ms at 44.1 kHz.
_N_FFT, _HOP = 4096, 1024

#: Components of NMF for each instrument: about as many as there are pitches in half a minute.
_COMPONENTS = 15

_Stems = Float[np.ndarray, "instruments samples"]
_Notes = Float[np.ndarray, "notes 3"]


class Peer(NamedTuple):
    """A method.

    - `run`: stems, and notes of onset, duration in seconds and MIDI pitch if it finds any, of a piece and a
      seed. Nothing but the mixture is looked at, unless it is an oracle.
    - `about`: what it is.
    - `packages`: that it imports, beside those of jaxsep.
    - `extra`: with which they are installed.
    - `most`: instruments that it can tell apart, or None.
    - `oracle`: whether it looks at the true stems.
    """

    run: Callable[[Piece, int], tuple[_Stems | None, _Notes | None]]
    about: str
    packages: tuple[str, ...] = ()
    extra: str = ""
    most: int | None = None
    oracle: bool = False

    def missing(self) -> str | None:
        """Why it cannot run here, in one line; None if it can."""
        for package in self.packages:
            try:
                with _quiet():
                    importlib.import_module(package)
            except Exception as error:  # some packages raise anything when they are imported
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                return f"it needs {package} ({reason}); {self.extra} installs it"
        return None


def _jaxsep(**settings):
    def run(piece, seed):
        request = {"settings": SeparationSettings(**settings), "key": jax.random.key(seed)}
        found = separate(piece.mixture, piece.sample_rate, len(piece.instruments), **request)
        notes = find_notes(found.tones, found.times, found.dictionary)
        rows = [(note.onset, note.offset - note.onset, note.pitch) for note in notes]
        return found.stems, np.array(rows).reshape(-1, 3)

    return run


def mixture_as_estimate(piece: Piece, seed: int):
    """Nothing is separated: what every figure has to exceed."""
    return np.repeat(piece.mixture[None], len(piece.instruments), axis=0), None


def _masked(magnitudes, mixed, samples):
    """The mixture's transform times the part that each instrument has of all magnitudes."""
    import librosa

    masks = magnitudes / np.maximum(magnitudes.sum(axis=0), np.finfo(np.float32).tiny)
    return np.stack([librosa.istft(mask * mixed, hop_length=_HOP, length=samples) for mask in masks])


def _spectrogram(samples):
    import librosa

    return librosa.stft(samples, n_fft=_N_FFT, hop_length=_HOP)


def _factorised(magnitudes, num_components, seed):
    """Spectra `[bins, components]` and activations of a factorisation by Kullback-Leibler divergence."""
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    options = {"beta_loss": "kullback-leibler", "solver": "mu", "init": "nndsvda", "max_iter": 200}
    model = NMF(num_components, random_state=seed, **options)
    # The products are small: several threads wait for each other more than they compute.
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the iterations are what it may take
        spectra = model.fit_transform(np.maximum(magnitudes, 1e-7 * magnitudes.max()))
    return spectra, model.components_


def _clustered(piece, seed, assign):
    mixed = _spectrogram(piece.mixture)
    count = len(piece.instruments)
    spectra, activations = _factorised(np.abs(mixed), _COMPONENTS * count, seed)
    numbers = assign(spectra, activations, mixed)
    magnitudes = np.stack([spectra[:, numbers == n] @ activations[numbers == n] for n in range(count)])
    return _masked(magnitudes, mixed, piece.mixture.size), None


def nmf_by_timbre(piece: Piece, seed: int):
    """NMF, its spectra clustered by the cepstral coefficients of their envelopes.

    After M. Spiertz, V. Gnann, "Source-filter based clustering for monaural blind source separation", DAFx
    2009: the filter of source and filter is taken to be the instrument's.
    """

    def assign(spectra, activations, mixed):
        import librosa
        from sklearn.cluster import KMeans

        power = librosa.feature.melspectrogram(S=spectra**2, sr=piece.sample_rate, n_fft=_N_FFT, n_mels=20)
        # Without the first coefficient, which is the level.
        features = librosa.feature.mfcc(S=librosa.power_to_db(power), n_mfcc=13)[1:].T
        return KMeans(len(piece.instruments), n_init=10, random_state=seed).fit_predict(features)

    return _clustered(piece, seed, assign)


def nmf_by_truth(piece: Piece, seed: int):
    """NMF, each spectrum given to the instrument whose true spectrogram it correlates with most."""

    def assign(spectra, activations, mixed):
        true = np.stack([np.abs(_spectrogram(stem)) for stem in piece.stems])
        return np.argmax([np.sum(spectra * (stem @ activations.T), axis=0) for stem in true], axis=0)

    return _clustered(piece, seed, assign)


def harmonic_percussive(piece: Piece, seed: int):
    """What goes on in time, and what goes on in frequency (D. FitzGerald, DAFx 2010): a floor."""
    import librosa

    return np.stack(librosa.effects.hpss(piece.mixture, n_fft=_N_FFT, hop_length=_HOP)), None


def repeating(piece: Piece, seed: int):
    """What repeats, and the rest, by medians over similar frames (Rafii, Pardo, "REPET-SIM", ISMIR 2012)."""
    import librosa

    mixed = _spectrogram(piece.mixture)
    magnitudes = np.abs(mixed)
    apart = max(1, round(piece.sample_rate / _HOP))  # a second between frames that are compared
    similar = librosa.decompose.nn_filter(magnitudes, aggregate=np.median, metric="cosine", width=apart)
    background = np.minimum(magnitudes, similar)
    return _masked(np.stack([background, magnitudes - background]), mixed, piece.mixture.size), None


def ratio_mask(piece: Piece, seed: int):
    """The true magnitudes by their sum."""
    return oracle_stems(piece.stems, piece.mixture, piece.sample_rate), None


def power_mask(piece: Piece, seed: int):
    """The true powers by their sum, the Wiener filter."""
    return oracle_stems(piece.stems, piece.mixture, piece.sample_rate, exponent=2.0), None


def basic_pitch(piece: Piece, seed: int):
    """Notes of all instruments together by a trained network (R. M. Bittner et al., ICASSP 2022)."""
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        import basic_pitch
        from basic_pitch.inference import predict

        path = Path(folder) / "mixture.wav"
        soundfile.write(path, piece.mixture, piece.sample_rate, subtype="FLOAT")
        model = Path(basic_pitch.__file__).parent / "saved_models" / "icassp_2022" / "nmp.onnx"
        _, _, events = predict(path, model)
    rows = [(float(begin), float(end - begin), float(pitch)) for begin, end, pitch, *_ in events]
    return None, np.array(rows).reshape(-1, 3)


class _quiet:  # noqa: N801 (used like a function)
    """What packages print, log and warn of is not heard."""

    def __enter__(self):
        logging.disable(logging.WARNING)
        self._output = contextlib.redirect_stdout(io.StringIO())
        self._output.__enter__()
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error):
        self._warnings.__exit__(*error)
        self._output.__exit__(*error)
        logging.disable(logging.NOTSET)


def _pip(extra):
    return f'pip install -e ".[{extra}]"'


#: Every method by its name, the blind ones first.
PEERS = {
    "jaxsep": Peer(_jaxsep(), "the default"),
    "jaxsep --fast": Peer(_jaxsep(**SeparationSettings.FAST), "half the frames"),
    "jaxsep --search greedy": Peer(_jaxsep(search="greedy"), "P1 as published"),
    "NMF": Peer(nmf_by_timbre, "clustered by timbre", ("librosa", "sklearn"), _pip("peers-nmf")),
    "HPSS": Peer(harmonic_percussive, "a floor", ("librosa",), _pip("peers-librosa"), most=2),
    "REPET": Peer(repeating, "what repeats", ("librosa",), _pip("peers-librosa"), most=2),
    "mixture": Peer(mixture_as_estimate, "nothing is separated"),
    "basic-pitch": Peer(
        basic_pitch,
        "notes alone",
        ("basic_pitch.inference", "onnxruntime"),
        # Its package asks for a TensorFlow that JAX cannot share an environment with, and runs without.
        f"{_pip('peers-notes')} && pip install --no-deps basic-pitch",
    ),
    "NMF, oracle": Peer(
        nmf_by_truth, "clustered by the truth", ("librosa", "sklearn"), _pip("peers-nmf"), oracle=True
    ),
    "ratio mask": Peer(ratio_mask, "of the true magnitudes", oracle=True),
    "power mask": Peer(power_mask, "of the true powers", oracle=True),
}
