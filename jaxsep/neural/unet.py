"""The U-Net of P2: one frame's channels along frequency in, as many features per bin out."""

import functools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["Convolution", "TransposedConvolution", "UNet"]


class Convolution(eqx.Module):
    """Strided convolution along frequency: `y[l, o] = Σ_{j, c} x[l·stride + j - left, c] W[j, c, o] + b[o]`.

    `left = (kernel - stride + 1) // 2` zeros stand before the first bin (and zeros after the last), so that a
    length that the stride divides shrinks by exactly the stride.

    Arguments:
        weight: `[kernel, in, out]`.
        bias: of each output channel, or None.
        stride: bins per output.
        method: `"matmul"` gathers the windows and multiplies once, twice as fast on CPUs with
            its derivative; `"conv"` calls the platform's convolution; `"auto"` takes what suits the platform.
    """

    weight: Float[Array, "kernel inputs outputs"]
    bias: Float[Array, " outputs"] | None
    stride: int = eqx.field(static=True, default=1)
    method: str = eqx.field(static=True, default="auto")

    @classmethod
    def create(
        cls, inputs: int, outputs: int, kernel: int, stride: int = 1, *, bias=True, method="auto", key
    ) -> "Convolution":
        """Random weights of variance 2 / fan-in (He), no bias."""
        weight = _he(key, (kernel, inputs, outputs), kernel * inputs)
        return cls(weight, jnp.zeros(outputs) if bias else None, stride, method)

    def __call__(self, x: Float[Array, "bins inputs"]) -> Float[Array, "shorter outputs"]:
        """Features of one frame."""
        y = _by_platform(self.method, _matmul, _conv, self.stride)(x, self.weight)
        return y if self.bias is None else y + self.bias


class TransposedConvolution(eqx.Module):
    """The adjoint of a `Convolution`, with weights of its own: a length grows by exactly the stride.

    Arguments:
        weight, bias, stride, method: as for `Convolution`.
    """

    weight: Float[Array, "kernel inputs outputs"]
    bias: Float[Array, " outputs"]
    stride: int = eqx.field(static=True, default=1)
    method: str = eqx.field(static=True, default="auto")

    @classmethod
    def create(
        cls, inputs: int, outputs: int, kernel: int, stride: int, *, method="auto", key
    ) -> "TransposedConvolution":
        """Random weights of variance 2 / (inputs that reach an output), no bias."""
        weight = _he(key, (kernel, inputs, outputs), max(1, kernel // stride) * inputs)
        return cls(weight, jnp.zeros(outputs), stride, method)

    def __call__(self, x: Float[Array, "bins inputs"]) -> Float[Array, "longer outputs"]:
        """Features of one frame."""
        run = _by_platform(self.method, _matmul_transposed, _conv_transposed, self.stride)
        return run(x, self.weight) + self.bias


class UNet(eqx.Module):
    """U-Net along the frequencies of one frame (P2): `[bins, inputs]` → `[bins, outputs]`.

    The encoder's strided convolutions are mirrored by transposed ones; the features of equal resolution
    (the input itself at the last) stand beside the decoder's. A convolution of kernel 3 and two of kernel 1
    follow; the last has no bias. ReLU in between.

    Example:
        >>> unet = jaxsep.UNet.create(3, 2, strides=(4,), widths=(8,), key=jax.random.key(0))
        >>> unet(jnp.zeros((16, 3))).shape  # [bins, features]
        (16, 2)
    """

    encoder: tuple[Convolution, ...]
    decoder: tuple[TransposedConvolution, ...]
    head: tuple[Convolution, ...]

    @classmethod
    def create(
        cls,
        inputs: int,
        outputs: int,
        *,
        strides: Sequence[int] = (4, 4, 4, 4, 4, 3, 2),
        widths: Sequence[int] = (80, 160, 240, 320, 400, 480, 560),
        kernel: int = 5,
        method: str = "auto",
        key: PRNGKeyArray,
    ) -> "UNet":
        """Random weights. The defaults are P2's.

        Arguments:
            inputs, outputs: channels.
            strides: of each level; their product divides the number of bins.
            widths: channels of each level.
            kernel: bins of the windows, at least the largest stride.

        Raises: `ValueError` if strides and widths do not match, or the kernel leaves bins out.
        """
        if len(strides) != len(widths) or len(strides) < 1:
            raise ValueError(f"widths: expected one for each of {len(strides)} strides, got {len(widths)}")
        if kernel < max(strides):
            raise ValueError(f"kernel: expected at least the largest stride {max(strides)}, got {kernel}")
        keys = iter(jax.random.split(key, 2 * len(strides) + 3))
        before = [inputs, *widths[:-1]]
        encoder = [
            Convolution.create(a, b, kernel, s, method=method, key=next(keys))
            for a, b, s in zip(before, widths, strides, strict=True)
        ]
        decoder, channels = [], widths[-1]
        for level in reversed(range(len(strides))):
            width = widths[max(level - 1, 0)]
            decoder.append(
                TransposedConvolution.create(
                    channels, width, kernel, strides[level], method=method, key=next(keys)
                )
            )
            channels = width + before[level]
        head = [
            Convolution.create(channels, widths[0], 3, method=method, key=next(keys)),
            Convolution.create(widths[0], widths[0], 1, method=method, key=next(keys)),
            Convolution.create(widths[0], outputs, 1, bias=False, method=method, key=next(keys)),
        ]
        return cls(tuple(encoder), tuple(decoder), tuple(head))

    def __call__(self, x: Float[Array, "bins inputs"]) -> Float[Array, "bins outputs"]:
        """Features of every bin.

        Raises: `ValueError` if the strides do not divide the number of bins.
        """
        factor = 1
        for layer in self.encoder:
            factor *= layer.stride
        if x.shape[0] % factor:
            raise ValueError(f"x: expected a number of bins that {factor} divides, got {x.shape[0]}")
        skips = []
        for layer in self.encoder:
            skips.append(x)
            x = jax.nn.relu(layer(x))
        for layer in self.decoder:
            x = jnp.concatenate([jax.nn.relu(layer(x)), skips.pop()], axis=1)
        first, second, last = self.head
        return last(jax.nn.relu(second(jax.nn.relu(first(x)))))


def _he(key, shape, fan_in):
    return jax.random.normal(key, shape) * (2 / fan_in) ** 0.5


def _by_platform(method, matmul, conv, stride):
    matmul, conv = functools.partial(matmul, stride=stride), functools.partial(conv, stride=stride)
    if method == "matmul":
        return matmul
    if method == "conv":
        return conv
    if method != "auto":
        raise ValueError(f"method: expected 'auto', 'matmul' or 'conv', got {method!r}")
    return lambda x, weight: jax.lax.platform_dependent(x, weight, cpu=matmul, default=conv)


def _left(kernel, stride):
    """Zeros before the first bin."""
    return (kernel - stride + 1) // 2


def _matmul(x, weight, stride):
    kernel, inputs, outputs = weight.shape
    if kernel == 1 and stride == 1:
        return x @ weight[0]
    # With the strides folded into channels, a window is a few whole rows: contiguous copies.
    length, left = x.shape[0] // stride, _left(kernel, stride)
    taps = [min(stride, kernel - first) for first in range(0, kernel, stride)]
    rows = length + len(taps) - 1
    folded = jnp.pad(x, ((left, rows * stride - left - x.shape[0]), (0, 0))).reshape(rows, stride * inputs)
    parts = [folded[j : j + length, : count * inputs] for j, count in enumerate(taps)]
    return jnp.concatenate(parts, axis=1) @ weight.reshape(kernel * inputs, outputs)


def _conv(x, weight, stride):
    kernel, left = weight.shape[0], _left(weight.shape[0], stride)
    padding, layout = [(left, kernel - stride - left)], ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x[None], weight, (stride,), padding, dimension_numbers=layout)[0]


def _matmul_transposed(x, weight, stride):
    kernel, inputs, outputs = weight.shape
    length, left = x.shape[0], _left(kernel, stride)
    taps = x @ jnp.swapaxes(weight, 0, 1).reshape(inputs, kernel * outputs)
    # Tap j of input l belongs to bin l·stride + j - left: whole rows of `stride` bins, added with shifts.
    before = -(-left // stride)
    lead = before * stride - left
    parts = -(-(lead + kernel) // stride)
    taps = jnp.pad(taps, ((0, 0), (lead * outputs, (parts * stride - lead - kernel) * outputs)))
    taps = taps.reshape(length, parts, stride * outputs)
    total = sum(jnp.pad(taps[:, j], ((j, parts - 1 - j), (0, 0))) for j in range(parts))
    return total[before : before + length].reshape(length * stride, outputs)


def _conv_transposed(x, weight, stride):
    kernel, left = weight.shape[0], _left(weight.shape[0], stride)
    padding, layout = [(kernel - 1 - left, stride - 1 + left)], ("NWC", "WIO", "NWC")
    options = {"lhs_dilation": (stride,), "dimension_numbers": layout}
    return jax.lax.conv_general_dilated(x[None], weight[::-1], (1,), padding, **options)[0]
