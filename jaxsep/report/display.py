"""How a separation shows itself in a notebook: one piece of HTML that needs nothing else."""

import base64
import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from jaxsep.notes.note import note_name
from jaxsep.report.page import encoded_tracks, page_template
from jaxsep.report.plots import mixture_of, overview_figure
from jaxsep.separation.result import Separation

__all__ = ["separation_html"]

#: Seconds of a recording that the players hold: a notebook keeps them as text, in every copy of it.
_LONGEST = 60.0

#: Notes up to which their table is open, and those that it has at most.
_FEW_NOTES, _MOST_NOTES = 24, 400

#: Pixels of the picture, a quarter of the area of a file's.
_WIDTH = 1000


def separation_html(separation: Separation) -> str:
    """Players for mixture and stems, the overview, and the notes as a table.

    Half a minute of a duet takes less than 10 MB. Of a longer recording the players have the first minute;
    its picture and its notes are folded away.
    """
    rate, mixture = separation.sample_rate, mixture_of(separation)
    duration = mixture.shape[-1] / rate
    names, sounds = ["mixture", *separation.names], [mixture, *separation.stems]
    if separation.noise is not None:
        names, sounds = [*names, "noise"], [*sounds, separation.noise]
    tracks = [np.atleast_2d(track)[:, : round(_LONGEST * rate)] for track in sounds]
    media, audio = encoded_tracks(tracks, rate)
    notes = separation.notes()
    return page_template("display.html").render(
        media=media,
        tracks=list(zip(names, audio, strict=True)),
        duration=duration,
        heard=min(duration, _LONGEST),
        long=duration > _LONGEST,
        rate=rate,
        seconds=sum(separation.seconds.values()),
        picture=_picture(overview_figure(separation)) if np.any(mixture) else None,
        notes=[_row(note, separation.names) for note in notes[:_MOST_NOTES]],
        num_notes=len(notes),
        few=len(notes) <= _FEW_NOTES,
    )


def _picture(figure: Figure) -> str:
    """A figure as a small picture in base64."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_WIDTH / figure.get_figwidth())
    file.seek(0)
    small = io.BytesIO()
    Image.open(file).convert("RGB").save(small, "WEBP", quality=80, method=4)
    return base64.b64encode(small.getvalue()).decode("ascii")


def _row(note, names):
    return {
        "instrument": names[note.instrument],
        "onset": f"{note.onset:.2f}",
        "duration": f"{note.offset - note.onset:.2f}",
        "name": note_name(note.pitch),
        "pitch": f"{note.pitch:.2f}",
        "level": f"{note.level:.0f}",
        "confidence": "–" if note.confidence is None else f"{note.confidence:.1f}",
    }
