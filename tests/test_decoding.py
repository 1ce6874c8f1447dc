"""Files as people have them: read to their end, or what is missing said."""

import os
import threading
import warnings

import av
import numpy as np
import pytest
import soundfile

from jaxsep.audio import Recording, read_audio
from jaxsep.files import AudioError, AudioWarning

RATE = 48000
NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, 2 * RATE).astype(np.float32)

#: By suffix: FFmpeg's name of the container, of the codec, and options.
KINDS = {
    "m4a": ("mp4", "aac", {}),
    "mp4": ("mp4", "alac", {"movflags": "faststart"}),
    "aac": ("adts", "aac", {}),
    "wma": ("asf", "wmav2", {}),
    "webm": ("webm", "libopus", {}),
    "opus": ("ogg", "libopus", {}),
    "ogg": ("ogg", "by libsndfile", {}),
    "mp3": ("mp3", "libmp3lame", {}),
    "bare.mp3": ("mp3", "libmp3lame", {"write_xing": "0"}),
    "wv": ("wv", "wavpack", {}),
}


def encoded(path, samples=NOISE, kind=None, rate=RATE, bit_rate=128_000, quality=None):
    """A file that FFmpeg wrote, and its bytes."""
    container, codec, options = KINDS[kind or path.name.partition(".")[2]]
    if codec == "by libsndfile":
        soundfile.write(path, samples, rate)
        return path.read_bytes()
    with av.open(str(path), "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = bit_rate
        if quality is not None:
            if not hasattr(stream.codec_context, "global_quality"):
                pytest.skip("PyAV before 17.1 writes no file by quality")
            stream.codec_context.flags |= 2  # variable rate, by quality
            stream.codec_context.global_quality = 118 * quality
        frame = av.AudioFrame.from_ndarray(np.atleast_2d(samples), format="fltp", layout="mono")
        frame.sample_rate = rate
        stream.codec_context.open()
        context = stream.codec_context
        size = context.frame_size or 1024
        converter = av.AudioResampler(context.format, "mono", rate, frame_size=size)
        for piece in [*converter.resample(frame), *converter.resample(None), None]:
            file.mux(stream.encode(piece))
    return path.read_bytes()


def read(path):
    """Samples, and the warnings; a `Recording` has the same."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples, rate = read_audio(path)
        with Recording(path) as recording:
            pieces = [recording.read(n, n + 1) for n in range(int(recording.duration) + 1)]
            assert (recording.sample_rate, recording.num_samples) == (rate, samples.shape[1])
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1)[:, : samples.shape[1]], samples)
    assert {warning.category for warning in caught} <= {AudioWarning}
    return samples, {str(warning.message) for warning in caught}


@pytest.fixture(autouse=True)
def _nothing_on_stderr(capfd):
    yield
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", KINDS)
def test_what_people_have(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    encoded(path)
    samples, warned = read(path)
    # Encoders fill up their last frame; that of WMA writes none of its own delay.
    assert (abs(samples.shape[1] - NOISE.size) < 2100, warned) == (True, set())
    lossy = 0.8 if kind != "wma" else 0.0
    assert samples[0, : NOISE.size].std() > lossy * NOISE.std()


@pytest.mark.parametrize("quality", [None, 2])
def test_mp3_that_does_not_say_its_length(tmp_path, quality):
    """Of a constant rate, or quiet at first and then dense, so that an estimate goes wrong."""
    samples = np.concatenate([0.01 * np.tile(NOISE, 2), np.tile(NOISE, 6)])
    encoded(tmp_path / "a.bare.mp3", samples, quality=quality)
    found, warned = read(tmp_path / "a.bare.mp3")
    assert (abs(found.shape[1] - samples.size) < 2500, warned) == (True, set())


@pytest.mark.parametrize("kind", ["mp3", "bare.mp3", "ogg", "opus"])
def test_joined(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    encoded(path)
    once, _ = read(path)
    path.write_bytes(2 * path.read_bytes())
    twice, warned = read(path)
    assert (abs(twice.shape[1] - 2 * once.shape[1]) < 3500, warned) == (True, set())


@pytest.mark.parametrize("kind", ["wav", "aiff", "rf64", "caf", "au", "flac"])
def test_joined_where_nobody_reads_on(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, NOISE, RATE, format=kind.upper())
    path.write_bytes(2 * path.read_bytes())
    samples, warned = read(path)
    assert samples.shape[1] == NOISE.size
    assert warned == {
        f"{path} holds several recordings one after the other, of which only the first is read."
    }


def test_joined_of_two_rates(tmp_path):
    both = encoded(tmp_path / "a.mp3") + encoded(tmp_path / "b.mp3", NOISE, rate=32000)
    (tmp_path / "a.mp3").write_bytes(both)
    with pytest.raises(AudioError, match=r"a.mp3 changes its rate or channels after 2\.\d* s, expected one"):
        read_audio(tmp_path / "a.mp3")


def missing(path, share):
    """What is said of a file of which the end is cut off, which begins with its name."""
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    try:
        _, warned = read(path)
    except AudioError as error:
        said = str(error)
    else:
        (said,) = warned
        with Recording(path) as recording, warnings.catch_warnings():
            assert f" {recording.duration:.3f} s " in said
    assert said.startswith(f"{path} ")
    return said.removeprefix(f"{path} ")


#: What can be written for this test but read by nobody, or has no header at all.
UNREAD = ("RAW", "HTK", "MP3", "OGG")


@pytest.mark.filterwarnings("ignore::jaxsep.files.AudioWarning")
@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("kind", sorted(soundfile.available_formats().keys() - UNREAD))
def test_cut(tmp_path, kind, share):
    path = tmp_path / f"a.{kind.lower()}"
    subtype = next(s for s in ("PCM_16", "DPCM_16", "ALAW") if soundfile.check_format(kind, s))
    soundfile.write(path, NOISE, RATE, format=kind, subtype=subtype)
    assert read_audio(path)[0].shape == (1, NOISE.size)
    missing(path, share)


@pytest.mark.filterwarnings("ignore::jaxsep.files.AudioWarning")
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"bare.mp3", "aac"}))  # which say nothing of their end
def test_cut_of_other_kinds(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    encoded(path)
    missing(path, 0.5)


@pytest.mark.parametrize("length", [0xC0000000, 0x80002000])
def test_wav_that_promises_gigabytes(tmp_path, length):
    path = tmp_path / "a.wav"
    patched(path, length)
    with pytest.raises(
        AudioError, match=r"a.wav is truncated: \d+ bytes of samples that its header promises"
    ):
        read_audio(path)


def patched(path, length):
    """A WAV file with another length in its header."""
    soundfile.write(path, NOISE, RATE)
    content = path.read_bytes()
    place = content.index(b"data") + 4
    path.write_bytes(
        content[:4] + bytes(4) + content[8:place] + length.to_bytes(4, "little") + content[place + 4 :]
    )


@pytest.mark.parametrize("length", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0x80000024, 0xFFFFFFFF])
def test_wav_of_a_program_that_could_not_know(tmp_path, length):
    patched(tmp_path / "a.wav", length)
    samples, warned = read(tmp_path / "a.wav")
    assert (samples.shape, warned) == ((1, NOISE.size), set())


def test_flac_of_a_program_that_could_not_know(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, NOISE, RATE)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36-bit number of samples in STREAMINFO
    content[22:26] = bytes(4)
    path.write_bytes(content)
    samples, warned = read(path)
    assert (samples.shape, warned) == ((1, NOISE.size), set())


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "IMA_ADPCM", "NMS_ADPCM_16"])
def test_codecs_in_which_nobody_can_seek(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", NOISE[:16000], 8000, subtype=subtype)
    samples, warned = read(tmp_path / "a.wav")
    assert (16000 <= samples.shape[1] < 17100, warned) == (True, set())


def test_decoders_that_stop_without_an_error(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", NOISE[:1000], RATE)
    pieces = iter([NOISE[:600, None], NOISE[:0, None]])
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: next(pieces))
    message = "a.wav is truncated: its header promises 1000 samples per channel, and only 600 are there.$"
    with pytest.raises(AudioError, match=message):
        read_audio(tmp_path / "a.wav")


def tagged(content):
    """An MP3 with a title and a picture before its sound, and a title of the old kind behind it."""
    picture = b"\0image/jpeg\0\x03\0" + b"\xff\xd8\xff\xfb\x90\x64" * 20_000
    frame = b"APIC" + len(picture).to_bytes(4, "big") + bytes(2) + picture
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + frame + content + b"TAG" + b"title".ljust(125, b"\0")


@pytest.mark.parametrize("kind", ["mp3", "bare.mp3"])
def test_pictures_are_no_sound(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    encoded(path)
    plain, _ = read(path)
    path.write_bytes(tagged(path.read_bytes()))
    samples, warned = read(path)
    np.testing.assert_array_equal(samples, plain)
    assert warned == set()
    if kind == "mp3":
        missing(path, 0.9)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "m4a"])
def test_pipes(tmp_path, kind):
    path, pipe = tmp_path / f"a.{kind}", tmp_path / "pipe"
    if kind in KINDS:
        encoded(path)
    else:
        soundfile.write(path, NOISE, RATE)
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()), daemon=True).start()
    samples, rate = read_audio(pipe)
    np.testing.assert_array_equal(samples, read_audio(path)[0])
    assert rate == RATE


def test_devices_never_end(tmp_path):
    with pytest.raises(AudioError, match=r"^/dev/zero is a device, expected an audio file"):
        read_audio("/dev/zero")


@pytest.mark.parametrize(
    "name", ["http:a.mp3", "concat:a.mp3|b.mp3", "-i.mp3", "a%d.mp3", "café.mp3", "caf\udce9.mp3"]
)
def test_names_are_names(tmp_path, name):
    encoded(tmp_path / name, kind="mp3") if "\udce9" not in name else None
    if "\udce9" in name:
        encoded(tmp_path / "a.mp3")
        os.rename(tmp_path / "a.mp3", tmp_path / name)
    assert read_audio(tmp_path / name)[0].shape == (1, NOISE.size)


def test_no_file_names_another(tmp_path):
    encoded(tmp_path / "a.mp3")
    (tmp_path / "a.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2,\na.mp3\n#EXT-X-ENDLIST\n")
    (tmp_path / "a.txt").write_text("ffconcat version 1.0\nfile a.mp3\n")
    for name in ("a.m3u8", "a.txt"):
        with pytest.raises(AudioError, match="is not audio in a format that can be read"):
            read_audio(tmp_path / name)


def test_cut_rf64_that_does_not_count_samples(tmp_path):
    """As some programs write it: the bytes alone are stated."""
    path = tmp_path / "a.rf64"
    soundfile.write(path, NOISE, RATE, format="RF64")
    content = path.read_bytes()
    path.write_bytes((content[:36] + bytes(8) + content[44:])[:-1000])
    with pytest.raises(AudioError, match=r"is truncated: 1000 bytes of samples"):
        read_audio(path)
