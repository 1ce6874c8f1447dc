"""Short-time Fourier transform with a Gaussian window, and its least-squares inverse."""

from collections.abc import Callable
from functools import lru_cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float, Int

from jaxsep.signal.axes import LinearAxis

__all__ = ["GaussianSTFT", "normalise_overlap"]

#: The window is cut at ±6 standard deviations, where it has fallen to 1.5e-8 of its peak.
_STDS_PER_FRAME = 12

#: Frames transformed together at most. More of them compile longer and, on a CPU, are not faster.
_FRAMES_PER_BLOCK = 8


class GaussianSTFT(eqx.Module):
    """Short-time Fourier transform with the Gaussian window of the papers.

    Frame n, bin f of a signal x is `Z[n, f] = Σ_t w(t) x(n·hop + t) exp(-2πi f t / n_fft)`, with
    `w(t) ∝ exp(-t² / (2 window_std²))`, -n_fft/2 ≤ t < n_fft/2, scaled to sum 1. Time counts from the
    window's centre: a cosine that peaks there has phase zero, and a sinusoid of amplitude 1 is a
    Gaussian of height ½ and standard deviation `sinusoid_std` bins, whatever its frequency. The
    signal is zero outside its samples.

    Every method takes one signal (or its spectrogram) and can be jitted, mapped and differentiated;
    the dtype of the input is kept. Temporaries stay at a few megabytes beside input and output.

    Arguments:
        window_std: standard deviation of the window in samples, at least 1. The papers have 1024 at
            48 kHz; for another sample rate keep its duration.
        hop: samples between the centres of neighbouring frames, from 1 to 4·window_std. Beyond that
            the window is so small between two frames that the inverse would amplify rounding errors.

    Raises: `ValueError` for a value out of range.

    Source: P1 and P2 (time-frequency representation).

    Example:
        >>> stft = jaxsep.GaussianSTFT(window_std=64, hop=32)
        >>> samples = jnp.sin(0.3 * jnp.arange(960.0))
        >>> spectrogram = stft.analyse(samples)
        >>> spectrogram.shape  # [frames, bins]
        (31, 385)
        >>> bool(jnp.allclose(stft.synthesise(spectrogram, 960), samples, atol=1e-5))
        True
    """

    window_std: int = eqx.field(default=1024, static=True)
    hop: int = eqx.field(default=256, static=True)

    def __check_init__(self):
        if self.window_std < 1:
            raise ValueError(f"window_std: expected at least 1 sample, got {self.window_std}")
        if not 1 <= self.hop <= 4 * self.window_std:
            limit = 4 * self.window_std
            raise ValueError(f"hop: expected 1 to 4·window_std = {limit} samples, got {self.hop}")

    @property
    def n_fft(self) -> int:
        """Length of a frame and of its transform in samples."""
        return _STDS_PER_FRAME * self.window_std

    @property
    def num_bins(self) -> int:
        """Number of frequency bins, from zero up to and including the Nyquist frequency."""
        return self.n_fft // 2 + 1

    @property
    def sinusoid_std(self) -> float:
        """Standard deviation in bins of the Gaussian peak that a stationary sinusoid makes: 6/π."""
        return self.n_fft / (2 * np.pi * self.window_std)

    def axis(self, sample_rate: int | float) -> LinearAxis:
        """The bins that the tone model covers at a rate in Hz: all but the Nyquist bin."""
        return LinearAxis(self.n_fft // 2, sample_rate / self.n_fft)

    def num_frames(self, num_samples: int) -> int:
        """Number of frames of a signal: the first centred on its first sample, the last at or past its last.

        Arguments:
            num_samples: length of the signal, at least 1.

        Raises: `ValueError` for an empty signal.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
        return 1 + -(-(num_samples - 1) // self.hop)

    def span(self, num_frames: int) -> int:
        """Number of samples from the start of the first to the end of the last of neighbouring frames."""
        if num_frames < 1:
            raise ValueError(f"num_frames: expected at least 1, got {num_frames}")
        return (num_frames - 1) * self.hop + self.n_fft

    def analyse(
        self,
        samples: Float[Array, " samples"],
        *,
        first_frame: int | Int[Array, ""] = 0,
        num_frames: int | None = None,
    ) -> Complex[Array, "frames bins"]:
        """Spectrogram of a signal, or a range of its frames.

        A long signal can be analysed in ranges of equal length: each has exactly the frames of the
        whole, and with a traced `first_frame` one compilation serves them all. Frames past the end
        see what their window still reaches of the signal, and then zeros.

        Arguments:
            samples: the signal, at least one sample.
            first_frame: first frame of the range, not negative; may be traced.
            num_frames: length of the range; by default up to the last frame of the signal, for which
                `first_frame` must be known when tracing.

        Raises: `ValueError` for an empty signal or range, or samples that are not floating-point numbers.
        """
        if not jnp.issubdtype(samples.dtype, jnp.floating):
            raise ValueError(f"samples: expected floating-point numbers, got {samples.dtype}")
        total = self.num_frames(samples.shape[0])
        traced = isinstance(first_frame, jax.core.Tracer)
        if not traced and first_frame < 0:
            raise ValueError(f"first_frame: expected at least 0, got {first_frame}")
        if num_frames is None:
            if traced:
                raise ValueError("num_frames: expected a number when first_frame is traced, got None")
            num_frames = total - int(first_frame)
        if num_frames < 1:
            raise ValueError(
                f"num_frames: expected at least 1, got {num_frames} (the signal has {total} frames)"
            )
        return _analyse(samples, jnp.asarray(first_frame), num_frames, self.window_std, self.hop)

    def synthesise(
        self, spectrogram: Complex[Array, "frames bins"], num_samples: int
    ) -> Float[Array, " samples"]:
        """Signal whose spectrogram is nearest to the given one in the least-squares sense.

        `x = Σ_n w(t - n·hop) · frame_n(t - n·hop) / Σ_n w(t - n·hop)²`, with frame_n the inverse
        transform of frame n: the orthogonal projection onto the spectrograms that belong to a signal
        (counting every bin but the first and last twice, for its negative frequency). A spectrogram
        from `analyse` gives back its signal to rounding. Samples that no frame covers are 0.

        Arguments:
            spectrogram: frames of a signal from its first one on, at least one.
            num_samples: length of the signal, at least 1.

        Raises: `ValueError` for a wrong number of bins, no frame, or num_samples < 1.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
        self._check(spectrogram)
        return _synthesise(spectrogram, num_samples, self.window_std, self.hop)

    def overlap_add(self, spectrogram: Complex[Array, "frames bins"]) -> Float[Array, " span"]:
        """Sum of the windowed inverse transforms of neighbouring frames: the numerator of `synthesise`.

        For frames a, a+1, … of a signal the result starts at its sample `a·hop - n_fft/2` and has
        `span(frames)` samples. Added up over ranges of frames in one buffer, and divided with
        `normalise_overlap` by `window_power` of all frames, it inverts a long spectrogram piecewise.

        Raises: `ValueError` for a wrong number of bins or no frame.
        """
        self._check(spectrogram)
        return _overlap_add_spectra(spectrogram, self.window_std, self.hop)

    def window_power(self, num_frames: int, dtype: DTypeLike = float) -> Float[Array, " span"]:
        """Sum of the squared windows of neighbouring frames: the denominator of `synthesise`.

        Arguments:
            num_frames: number of frames, at least 1.
            dtype: floating-point type of the result.

        Returns: `span(num_frames)` samples, the first at n_fft/2 before the first frame's centre.

        Raises: `ValueError` for no frame.
        """
        self.span(num_frames)  # refuses an empty range
        return _window_power(num_frames, jnp.zeros((), dtype).dtype, self.window_std, self.hop)

    def _check(self, spectrogram: Array):
        if spectrogram.shape[1] != self.num_bins:
            raise ValueError(f"spectrogram: expected {self.num_bins} bins, got {spectrogram.shape[1]}")
        if spectrogram.shape[0] < 1:
            raise ValueError("spectrogram: expected at least 1 frame, got 0")


@jax.jit
def normalise_overlap(
    numerator: Float[Array, " span"], power: Float[Array, " span"]
) -> Float[Array, " span"]:
    """Quotient of `overlap_add` and `window_power`, zero where no frame covers the sample.

    A sample counts as covered where the power is above `eps` of its maximum. Rounding errors of the
    frames are about eps, and the quotient amplifies them by up to 1/w. Between the centres of
    neighbouring frames that is less than 8, and at most 1/√eps elsewhere in what counts as covered.
    """
    covered = power > jnp.finfo(power.dtype).eps * jnp.max(power)
    return jnp.where(covered, numerator / jnp.where(covered, power, 1), 0)


@lru_cache(maxsize=8)
def _window(window_std: int) -> np.ndarray:
    """Gaussian window of sum 1, its centre at index n_fft/2."""
    half = _STDS_PER_FRAME * window_std // 2
    window = np.exp(-0.5 * (np.arange(-half, half) / window_std) ** 2)
    window /= window.sum()
    window.setflags(write=False)
    return window


def _centre_phase(window_std: int) -> np.ndarray:
    """Factors (-1)^f that move the origin of time from the frame's start to its centre, and back."""
    return 1 - 2 * (np.arange(_STDS_PER_FRAME * window_std // 2 + 1) % 2)


def _block_size(num_frames: int) -> int:
    """Largest number of frames up to the limit that divides them all.

    Blocks of equal size without a remainder need neither padding nor a copy of the spectrogram.
    """
    return max(size for size in range(1, _FRAMES_PER_BLOCK + 1) if num_frames % size == 0)


def _excerpt(samples: Array, start: Array, length: int) -> Array:
    """`length` samples from `start` on, zero outside the signal, without a copy of a long signal."""
    samples = jnp.pad(samples, (0, max(0, length - samples.shape[0])))
    inside = jnp.clip(start, 0, samples.shape[0] - length)
    nearest = lax.dynamic_slice(samples, (inside,), (length,))
    # Moved by more than its length, the excerpt has left the signal: the slice stops at the zeros.
    return lax.dynamic_slice(jnp.pad(nearest, length), (length + start - inside,), (length,))


# Both transforms walk through the signal in blocks of neighbouring frames. What a block shares with the
# next is handed on, so that each step, and its derivative, only touches the samples of its own frames.


@partial(jax.jit, static_argnums=(2, 3, 4))
def _analyse(samples: Array, first_frame: Array, num_frames: int, window_std: int, hop: int) -> Array:
    n_fft = _STDS_PER_FRAME * window_std
    window = jnp.asarray(_window(window_std), samples.dtype)
    phase = jnp.asarray(_centre_phase(window_std), samples.dtype)
    span = _excerpt(samples, first_frame * hop - n_fft // 2, (num_frames - 1) * hop + n_fft)
    size = _block_size(num_frames)

    def transform(past, new):
        block = jnp.concatenate([past, new])
        frames = jnp.stack([block[n * hop : n * hop + n_fft] for n in range(size)])
        return block[size * hop :], jnp.fft.rfft(frames * window) * phase

    overlap = n_fft - hop
    _, spectra = lax.scan(transform, span[:overlap], span[overlap:].reshape(-1, size * hop))
    return spectra.reshape(num_frames, -1)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _synthesise(spectrogram: Array, num_samples: int, window_std: int, hop: int) -> Array:
    numerator = _overlap_add_spectra(spectrogram, window_std, hop)
    power = _window_power(spectrogram.shape[0], numerator.dtype, window_std, hop)
    # Half a window precedes the centre of the first frame, which is the signal's first sample.
    start = _STDS_PER_FRAME * window_std // 2
    samples = normalise_overlap(numerator, power)[start : start + num_samples]
    return jnp.pad(samples, (0, num_samples - samples.shape[0]))


@partial(jax.jit, static_argnums=(1, 2))
def _overlap_add_spectra(spectrogram: Array, window_std: int, hop: int) -> Array:
    dtype = jnp.finfo(spectrogram.dtype).dtype
    window = jnp.asarray(_window(window_std), dtype)
    phase = jnp.asarray(_centre_phase(window_std), dtype)
    num_frames, num_bins = spectrogram.shape
    blocks = spectrogram.reshape(-1, _block_size(num_frames), num_bins)
    return _overlap_add(lambda spectra: jnp.fft.irfft(spectra * phase) * window, blocks, hop)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _window_power(num_frames: int, dtype: np.dtype, window_std: int, hop: int) -> Array:
    power = jnp.asarray(_window(window_std) ** 2, dtype)
    blocks = jnp.ones((num_frames, 1), dtype).reshape(-1, _block_size(num_frames), 1)
    return _overlap_add(lambda ones: ones * power, blocks, hop)


def _overlap_add(frames_of: Callable[[Array], Array], blocks: Array, hop: int) -> Array:
    """Sum of all frames, each `hop` samples later than the one before.

    `frames_of` turns one of the `blocks` into its frames.
    """
    size = blocks.shape[1]
    n_fft = jax.eval_shape(frames_of, blocks[0]).shape[1]

    def add(past, block):
        frames = frames_of(block)
        placed = [jnp.pad(frames[n], (n * hop, (size - 1 - n) * hop)) for n in range(size)]
        total = sum(placed, jnp.pad(past, (0, size * hop)))
        return total[size * hop :], total[: size * hop]

    last, finished = lax.scan(add, jnp.zeros(n_fft - hop, jnp.finfo(blocks.dtype).dtype), blocks)
    return jnp.concatenate([finished.reshape(-1), last])
