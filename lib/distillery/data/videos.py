"""The frames of a clip, from a video file or a folder of frames, by two rules.

A clip is one uint8 image of frames * 3 channels, frame after frame (see `networks.video`). Frames of a folder are its image files in natural order:
frame_2 before frame_10. All is a function of the file and the arguments alone, so that clips may be decoded in any order and thread. Videos are read
by PyAV, the extra `video`.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator

from distillery.checks import InputError, check_choice, check_positive_int, is_number
from distillery.data.archives import is_image, is_junk, shown
from distillery.data.decoding import MAX_PIXELS, open_image, why_not
from distillery.seeds import generator

RULES = ("middle", "gap")
FACTS = {  # what `clip` meets, in words that go behind a count of clips
    "repeated": "clip(s) with too few frames, of which some are shown more than once",
    "squeezed": "clip(s) that are not square squeezed to a square",
    "turned": "clip(s) turned upright, as their files say",
    "gray": "clip(s) with gray frames made RGB",
    "alpha": "clip(s) with an alpha channel laid on white",
    "16-bit": "clip(s) of 16 bits scaled to 8",
}
_FORMATS = "mov,matroska,avi,flv,mpegts,mpeg,asf,ogg"  # none that opens further files, as playlists do
_SLACK = 1e-3  # seconds: a .webm or .mkv rounds its times to so much


def start_of(seed: int, name: str, number: int = 0) -> Generator:
    """The generator that `clip` draws the start of one clip from: by the root seed, the clip's name in its plan, and the number of the pass.

    Neither order nor number of clips changes it. Training clips are those of pass 0; an evaluation with three passes takes every test clip in the
    passes 0, 1 and 2, and one with a single pass in pass 0.
    """
    return generator(seed, "start of a clip", name, number)


def clip(path, frames: int, side: int, *, rule: str = "middle", start: Generator | None = None, rate: float = 0.0) -> tuple:
    """One clip, each frame resized to a square: its aspect ratio is not kept.

    path     a video file, of which the first video stream is read from its beginning to the last frame that is taken; or a folder of frames
    rule     'middle'  of Kinetics-400 in the public code of Dancing with Still Images (arXiv 2312.00362): around its middle the clip is cut into
                       `frames` equal parts, 2 a second (shorter clips: 4 below 4 s, 8 below 2 s, 12 below 1 s, these times frames / 8), and gives
                       what is shown just before the middle of each, as FFmpeg's filter `fps` does. What is too short for so many parts is no clip, as
                       there. A folder is taken for a video of `rate`; where that is not known it is cut as a whole, so that one of just `frames`
                       frames gives all of them
             'gap'     of UCF101 and HMDB51 there: every 4th frame, or every (length // frames)th of a shorter clip, from one of the starts from which
                       they fit, all equally likely (those of the public code are not known). Beyond the end the last frame is repeated
    start    draws the start of 'gap', see `start_of`; None = the one in the middle
    rate     frames a second of a folder of frames, 0 = not known
    returns  uint8 (frames * 3, side, side), and what was met of `FACTS`; or None, and why it cannot be read
    raises   InputError on other arguments than these, and on a video where PyAV is not installed
    """
    check_choice("rule", rule, RULES)
    check_positive_int("frames", frames)
    check_positive_int("side", side)
    if not is_number(rate) or rate < 0:
        raise InputError(f"rate: {rate!r} is not accepted; accepted: frames a second, or 0 where they are not known")
    path = Path(path)
    try:
        taken = _of_folder(path, frames, rule, start, rate) if path.is_dir() else _of_video(path, frames, rule, start)
        return _put(taken, side)
    except InputError:
        raise
    except Exception as error:  # PyAV and Pillow raise a dozen kinds on broken files: all mean the same here
        return None, [why_not(path, error)]


def frames_in(folder: Path) -> list[Path]:
    """The image files directly in a folder, in natural order."""
    names = (entry.name for entry in os.scandir(folder) if is_image(entry.name) and not is_junk(entry.name))
    return [folder / name for name in sorted(names, key=_natural)]


def _natural(name: str) -> tuple:
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def middle(seconds: float, frames: int) -> list[float]:
    """The times of the rule 'middle' in a clip of so many seconds. Raises ValueError where it is too short."""
    rate = next((rate * frames / 8 for below, rate in ((1, 12), (2, 8), (4, 4)) if seconds < below), 2)
    start = max(0.0, seconds / 2 - frames / (2 * rate))
    times = [start + (i + 0.5) / rate for i in range(frames)]
    if times[-1] >= seconds:
        fit = sum(time < seconds for time in times)
        raise ValueError(f"too short: {seconds:.2f} s give {fit} of {frames} frames at {rate:g} a second")
    return times


def gap(length: int, frames: int, start: Generator | None = None) -> list[int]:
    """The frames, counted from 0, that the rule 'gap' takes of so many; where these are too few, the last ones are not there."""
    step = max(1, min(4, length // frames))
    latest = max(0, length - 1 - (frames - 1) * step)
    first = latest // 2 if start is None else int(torch.randint(latest + 1, (), generator=start))
    return [first + i * step for i in range(frames)]


def _of_folder(path: Path, frames: int, rule: str, start: Generator | None, rate: float) -> list:
    """The files that are taken."""
    files = frames_in(path)
    if not files:
        raise ValueError("no frame in it")
    if rule == "gap":
        places = [number + 0.5 for number in gap(len(files), frames, start)]
    elif rate:
        places = [time * rate for time in middle(len(files) / rate, frames)]
    elif len(files) < frames:
        raise ValueError(f"{len(files)} of {frames} frames")
    else:
        places = [(i + 0.5) * len(files) / frames for i in range(frames)]
    return _shown(enumerate(files), places)[0]


def _of_video(path: Path, frames: int, rule: str, start: Generator | None) -> list:
    """The decoded frames that are taken."""
    with _video(path) as (container, stream):
        told = float(stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1_000_000)
        if _untimed(container):  # of an .avi that is cut short FFmpeg makes up a duration that goes with what is left
            told = stream.frames / float(stream.average_rate) or told
        length, seconds = _measured(container, stream) if rule == "gap" or not told else (0, told)
        lasts = 1 / float(stream.average_rate or 1)  # the last frame
    _check_whole(seconds, told)
    places = [number + 0.5 for number in gap(length, frames, start)] if rule == "gap" else middle(seconds, frames)
    with _video(path) as (container, stream):  # from its beginning again
        taken, last = _shown(_decoded(container, stream, counted=rule == "gap"), places)
    if rule == "middle" and last is not None:
        _check_whole(last + lasts, told)
    return taken


@contextmanager
def _video(path: Path) -> Iterator[tuple]:
    """A file and its first video stream. Raises ValueError where there is none, InputError without PyAV."""
    if not path.stat().st_size:
        raise ValueError("an empty file")
    try:
        import av
    except ModuleNotFoundError as error:
        raise InputError("videos need PyAV; accepted: `pip install av`, or folders of frames") from error
    with av.open(os.path.abspath(path), options={"format_whitelist": _FORMATS}, metadata_errors="replace") as container:
        if not container.streams.video:
            raise ValueError("sound without pictures" if container.streams.audio else "no pictures in it")
        stream = container.streams.video[0]
        if (codec := stream.codec_context) is None:
            raise ValueError("pictures in a code that is not known")
        if codec.width * codec.height > MAX_PIXELS:
            raise ValueError(f"{codec.width}x{codec.height} pixels, more than {MAX_PIXELS}")
        codec.thread_count = 1  # clips are decoded side by side
        yield container, stream


def _packets(container, stream) -> Iterator:
    """The packets of a stream; the last is empty and drains the decoder. Raises ValueError on one that is not whole."""
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ValueError("damaged or cut short")
        yield packet


def _measured(container, stream) -> tuple[int, float]:
    """Frames and seconds, by reading through the file without decoding. Raises ValueError where there are fewer frames than it says."""
    length, ends = 0, 0.0
    for packet in (packet for packet in _packets(container, stream) if packet.size):
        length += 1
        ends = max(ends, float(((packet.pts or 0) + (packet.duration or 0)) * stream.time_base))
    if length < stream.frames:
        raise ValueError(f"cut short: {length} of {stream.frames} frames")
    return length, length / float(stream.average_rate) if _untimed(container) else ends


def _untimed(container) -> bool:
    """An .avi has a constant rate and no times; those made up for it go astray where frames depend on later ones."""
    return container.format.name == "avi"


def _decoded(container, stream, counted: bool) -> Iterator[tuple]:
    """Frames in the order in which they are shown, each behind its number, or the time in seconds since the first."""
    begin = None
    for number, frame in enumerate(frame for packet in _packets(container, stream) for frame in packet.decode()):
        begin = frame.time if begin is None else begin
        if counted or _untimed(container):
            yield number if counted else number / float(stream.average_rate), frame
        elif frame.time is None:
            raise ValueError("frames without times")
        else:
            yield frame.time - begin, frame


def _check_whole(ends: float, told: float) -> None:
    """Raise ValueError on pictures that end long before the file says."""
    if ends < 0.9 * told:
        raise ValueError(f"cut short: pictures end at {ends:.1f} s of {told:.1f} s")


def _shown(source: Iterable[tuple], places: list[float]) -> tuple[list, float | None]:
    """What is shown up to ascending places: the last that begins before; and, if all was read for it, where the last of all begins."""
    found, last, at = [], None, 0.0
    for place, one in source:
        while last is not None and len(found) < len(places) and place > places[len(found)] - _SLACK:
            found.append(last)
        if len(found) == len(places):
            return found, None
        last, at = one, place
    if last is None:
        raise ValueError("no frame in it")
    return found + [last] * (len(places) - len(found)), at


def _opened(one) -> tuple[str, Image.Image, list[str]]:
    """A file or a decoded frame: which it is, the picture, and what was met. Raises ValueError where it cannot be read."""
    if isinstance(one, Path):
        image, met = open_image(one)
        if image is None:
            raise ValueError(f"{shown(one.name)}: {met[0]}")
        return shown(one.name), image, met
    name, turn = f"the frame at {one.time or 0:.2f} s", one.rotation % 360
    if one.is_corrupt:
        raise ValueError(f"{name} is damaged")
    image = one.to_image()
    return name, image.rotate(turn, expand=True) if turn else image, ["turned"] if turn else []


def _put(taken: list, side: int) -> tuple[np.ndarray, list[str]]:
    """Files or decoded frames of one size as a clip, and what was met of `FACTS`. Raises ValueError on frames of several sizes."""
    pictures, met = [_opened(one) for one in taken], set()
    (name, first, _), *_ = pictures
    for other, image, facts in pictures:
        if image.size != first.size:
            raise ValueError(f"{other} is {image.width}x{image.height}, {name} is {first.width}x{first.height}")
        met.update(facts)
    met |= {"squeezed"} if first.width != first.height else set()
    met |= {"repeated"} if len(set(map(id, taken))) < len(taken) else set()
    small = (image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR) for _, image, _ in pictures)
    return np.concatenate([np.asarray(image).transpose(2, 0, 1) for image in small]), [fact for fact in FACTS if fact in met]
