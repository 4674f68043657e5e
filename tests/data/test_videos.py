"""The frames of clips, from videos and folders whose every frame shows its number: by hand, beside FFmpeg's own filter, drawn, and what cannot be read."""

import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from distillery.data import videos
from distillery.data.videos import FACTS, clip, gap, middle, start_of

BITS = 2 ** np.arange(8)
SUFFIXES = ("mp4", "avi", "webm", "mkv", "mov")


def picture(number, size=(64, 48)):
    """An image of eight bars, white where the number has the bit."""
    row = np.repeat((number & BITS) > 0, size[0] // 8).astype(np.uint8) * 255
    return np.broadcast_to(row[None, :, None], (size[1], size[0], 3)).copy()


def numbers(pixels):
    """The numbers of the frames of a clip."""
    rows = pixels.reshape(-1, 3, *pixels.shape[1:]).mean((1, 2)).reshape(len(pixels) // 3, 8, -1).mean(2)
    return ((rows > 127) * BITS).sum(1).tolist()


def video(path, n, rate=25, codec="", times=None, size=(64, 48)):
    """A video of `n` numbered frames, shown at `times` (ms) if given."""
    av = pytest.importorskip("av", reason="the optional extra video is not installed")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or {".webm": "libvpx"}.get(path.suffix, "mpeg4"), rate=rate)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        for number in range(n):
            frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def folder(path, n, name="frame_{}.png", size=(64, 48)):
    """A folder of `n` numbered frames."""
    path.mkdir(parents=True)
    for number in range(n):
        Image.fromarray(picture(number, size)).save(path / name.format(number))
    return path


def taken(path, frames, **options):
    pixels, met = clip(path, frames, 16, **options)
    assert pixels is not None, met
    assert pixels.shape == (3 * frames, 16, 16) and pixels.dtype == np.uint8 and set(met) <= set(FACTS)
    return numbers(pixels)


def why(path, **options):
    pixels, (reason,) = clip(path, 8, 16, **options)
    assert pixels is None and "\n" not in reason
    return reason


# ---------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    ("seconds", "frames", "first", "step"),
    [(10, 8, 3.25, 0.5), (4, 8, 0.25, 0.5), (3.9, 8, 1.075, 0.25), (2, 8, 0.125, 0.25), (1, 8, 0.0625, 0.125), (0.8, 8, 13 / 120, 1 / 12)]
    + [(0.65, 8, 1 / 24, 1 / 12), (10, 16, 1.25, 0.5), (3, 16, 0.5625, 0.125), (10, 4, 4.25, 0.5), (3, 4, 0.75, 0.5)],
)
def test_times_around_the_middle(seconds, frames, first, step):
    assert middle(seconds, frames) == pytest.approx([first + i * step for i in range(frames)])


@pytest.mark.parametrize(
    ("seconds", "frames", "told"), [(0.5, 8, "6 of 8 frames at 12"), (5, 16, "10 of 16 frames at 2 "), (0.0, 8, "0 of 8")]
)
def test_too_short_for_the_middle(seconds, frames, told):
    with pytest.raises(ValueError, match=told):
        middle(seconds, frames)


@pytest.mark.parametrize(
    ("length", "frames", "expected"),
    [
        (300, 8, range(135, 164, 4)),
        (32, 8, range(1, 30, 4)),
        (31, 8, range(4, 26, 3)),
        (16, 8, range(0, 15, 2)),
        (9, 8, range(8)),
        (3, 8, range(8)),
    ],
)
def test_frames_of_the_gap_from_the_start_in_the_middle(length, frames, expected):
    assert gap(length, frames) == list(expected)


def test_starts_are_drawn_by_seed_name_and_pass():
    one = [gap(300, 8, start_of(0, "dog/a.mp4")) for _ in range(2)]
    assert one[0] == one[1] and np.diff(one[0]).tolist() == [4] * 7
    others = [(1, "dog/a.mp4", 0), (0, "dog/b.mp4", 0), (0, "dog/a.mp4", 1), (0, "dog/a.mp4", 2)]
    assert len({one[0][0], *(gap(300, 8, start_of(*other))[0] for other in others)}) > 3
    starts = [gap(32, 8, start_of(0, f"{i}.mp4"))[0] for i in range(400)]
    assert set(starts) == {0, 1, 2, 3} and min(map(starts.count, range(4))) > 70  # 28 = 7 * 4 frames fit from 0 to 3


# ---------------------------------------------------------------- videos


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_of_a_video_of_four_seconds(tmp_path, suffix):
    path = video(tmp_path / f"a.{suffix}", 100)
    assert taken(path, 8) == [6, 18, 31, 43, 56, 68, 81, 93]  # a frame is 40 ms: before .25 s the 7th has begun
    assert taken(path, 8, rule="gap") == list(range(35, 64, 4))


@pytest.mark.parametrize(
    ("n", "rate", "frames"), [(250, 25, 8), (97, 30, 8), (50, 15, 8), (33, 30, 8), (20, 30, 8), (255, 30, 16), (24, 30, 16), (120, 24, 4)]
)
@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_the_middle_is_what_ffmpeg_takes(tmp_path, suffix, n, rate, frames):
    """The published way: a piece cut out around the middle, of which FFmpeg's filter `fps` takes frames."""
    path = video(tmp_path / f"a.{suffix}", n, rate)
    seconds, factor = n / rate, frames / 8
    fps = 12 * factor if seconds < 1 else 8 * factor if seconds < 2 else 4 * factor if seconds < 4 else 2
    start, end = max(0, seconds / 2 - frames / (2 * fps)), min(seconds, seconds / 2 + frames / (2 * fps))
    assert taken(path, frames) == filtered(path, start, end, fps)[:frames]


def filtered(path, start, end, fps):
    import av

    found = []
    with av.open(str(path)) as container:
        stream, graph = container.streams.video[0], av.filter.Graph()
        cut = [graph.add("trim", f"start={start:.6f}:end={end:.6f}"), graph.add("setpts", f"PTS-{start:.6f}/TB")]
        chain = [graph.add_buffer(template=stream), *cut, graph.add("fps", f"fps={fps}"), graph.add("buffersink")]
        for one, other in zip(chain, chain[1:]):
            one.link_to(other)
        graph.configure()
        for frame in [*container.decode(stream), None]:
            try:
                graph.push(frame)
                while True:
                    found.append(np.asarray(graph.pull().to_image().resize((16, 16))).transpose(2, 0, 1))
            except (av.BlockingIOError, av.EOFError):
                continue
    return numbers(np.concatenate(found))


def test_an_avi_with_frames_that_depend_on_later_ones_is_read_by_its_rate(tmp_path):
    expected = taken(video(tmp_path / "a.mp4", 100, codec="libx264"), 8)
    assert taken(video(tmp_path / "a.avi", 100, codec="libx264"), 8) == expected == [6, 18, 31, 43, 56, 68, 81, 93]


def test_frames_are_taken_by_their_times(tmp_path):
    """A rate that changes: 100 frames of 20 ms, then 50 of 60 ms; the file holds 4.96 s, so the first is that before .73 s."""
    path = video(tmp_path / "a.mkv", 150, 50, times=[20 * i if i < 100 else 2000 + 60 * (i - 100) for i in range(150)])
    assert taken(path, 8) == [36, 61, 86, 103, 112, 120, 128, 137]


def test_clips_are_the_same_in_any_order_and_thread(tmp_path):
    names = {f"{i}.mp4": video(tmp_path / f"{i}.mp4", 60 + 10 * i) for i in range(6)}

    def work(name):
        return clip(names[name], 8, 16, rule="gap", start=start_of(3, name))[0]

    alone = {name: work(name) for name in names}
    with ThreadPoolExecutor(4) as pool:
        again = dict(zip(reversed(names), pool.map(work, reversed(names))))
    assert all(np.array_equal(alone[name], again[name]) for name in names)
    assert len({numbers(pixels)[0] for pixels in alone.values()}) > 2


def test_a_short_video_repeats_its_last_frame(tmp_path):
    path = video(tmp_path / "a.mp4", 5)
    assert clip(path, 8, 16, rule="gap")[1] == ["repeated", "squeezed"]
    assert taken(path, 8, rule="gap") == [0, 1, 2, 3, 4, 4, 4, 4]


def test_an_avi_without_its_end(tmp_path):
    """The header tells how long it was: frames around the middle are the same, and where all are counted it is refused."""
    path = video(tmp_path / "a.avi", 255)
    whole, content = taken(path, 8), path.read_bytes()
    index = content.index(b"idx1")
    path.write_bytes(content[: content.rindex(b"00dc", 0, index)])
    assert taken(path, 8) == whole and why(path, rule="gap") == "cut short: 254 of 255 frames"
    path.write_bytes(content[: index - 10])  # within the last frame
    assert taken(path, 8) == whole and why(path, rule="gap") == "damaged or cut short"


def test_a_title_in_another_alphabet_does_no_harm(tmp_path):
    av = pytest.importorskip("av", reason="the optional extra video is not installed")
    with av.open(str(video(tmp_path / "a.mp4", 100))) as container, av.open(str(tmp_path / "b.mp4"), "w") as out:
        out.metadata["title"] = "Ünïcode"
        stream = out.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    content = (tmp_path / "b.mp4").read_bytes()
    assert "Ü".encode() in content
    (tmp_path / "b.mp4").write_bytes(content.replace("Ü".encode(), "ÜÜ".encode("latin1")))
    assert taken(tmp_path / "b.mp4", 8) == taken(tmp_path / "a.mp4", 8)


def test_a_video_is_turned_as_it_says(tmp_path):
    path = video(tmp_path / "a.mp4", 100)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44  # the matrix of a track: a quarter turn clockwise
    content[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    pixels, met = clip(path, 8, 16)
    assert met == ["squeezed", "turned"] and numbers(pixels.transpose(0, 2, 1)) == [6, 18, 31, 43, 56, 68, 81, 93]


# ---------------------------------------------------------------- folders of frames


def test_frames_of_a_folder(tmp_path):
    path = folder(tmp_path / "a", 100)
    assert taken(path, 8, rate=25) == [6, 18, 31, 43, 56, 68, 81, 93]  # as the video
    assert taken(path, 8) == [6, 18, 31, 43, 56, 68, 81, 93]  # eight equal parts: of 4 s the same ones
    assert taken(path, 8, rate=10) == [32, 37, 42, 47, 52, 57, 62, 67]
    assert taken(path, 8, rule="gap") == list(range(35, 64, 4))
    assert taken(folder(tmp_path / "b", 12), 12) == list(range(12))  # frame_2 before frame_10
    assert taken(folder(tmp_path / "c", 16, "{:02d}.jpg"), 8) == list(range(0, 16, 2))


def test_facts_of_a_folder(tmp_path):
    path = folder(tmp_path / "a", 8, size=(16, 16))
    assert clip(path, 8, 16)[1] == []
    Image.fromarray(picture(1, (16, 16))[..., 0]).save(path / "frame_1.png")
    assert clip(path, 8, 16)[1] == ["gray"]
    assert clip(path, 10, 16, rule="gap")[1] == ["repeated", "gray"]
    (path / ".hidden.png").write_bytes(b"x")
    (path / "n_frames").write_text("8")
    assert taken(path, 8) == list(range(8))


# ---------------------------------------------------------------- what cannot be read


def broken(name):
    def write(root):
        path = root / f"a{name}"
        video(path, 100, codec="mjpeg" if name == ".mov" else "")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 6 // 10])
        return path

    return write


def overwritten(root):
    path = video(root / "a.mp4", 100, codec="libx264")
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + 400
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    return path


def sound(root):
    av = pytest.importorskip("av", reason="the optional extra video is not installed")
    with av.open(str(root / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return root / "a.mp4"


def written(name, content):
    def write(root):
        pytest.importorskip("av", reason="the optional extra video is not installed")
        (root / name).write_bytes(content)
        return root / name

    return write


def odd_size(root):
    path = folder(root / "a", 8)
    Image.fromarray(picture(3, (32, 48))).save(path / "frame_3.png")
    return path


def cut_frame(root):
    path = folder(root / "a", 8)
    (path / "frame_3.png").write_bytes((path / "frame_3.png").read_bytes()[:60])
    return path


def emptied(root):
    (root / "a").mkdir()
    return root / "a"


UNREADABLE = {
    "mp4 cut short": (broken(".mp4"), "Invalid data"),
    "avi cut short": (broken(".avi"), "cut short"),
    "webm cut short": (broken(".webm"), "cut short: pictures end at"),
    "mkv cut short": (broken(".mkv"), "cut short: pictures end at"),
    "overwritten": (overwritten, "Invalid data"),
    "sound": (sound, "sound without pictures"),
    "empty": (written("a.mp4", b""), "an empty file"),
    "text": (written("a.mp4", b"404: Not Found\n" * 9), "Invalid"),
    "playlist": (written("a.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n"), "Invalid"),
    "not there": (lambda root: root / "a.mp4", "No such file"),
    "short": (lambda root: video(root / "a.mp4", 10), "too short: 0.40 s give 5 of 8 frames at 12 a second"),
    "frames of two sizes": (odd_size, "frame_3.png is 32x48, frame_0.png is 64x48"),
    "broken frame": (cut_frame, "frame_3.png: "),
    "no frame": (emptied, "no frame in it"),
    "few frames": (lambda root: folder(root / "a", 7), "7 of 8 frames"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read_is_told(tmp_path, what):
    write, told = UNREADABLE[what]
    path = write(tmp_path)
    assert told in why(path)
    if what in ("short", "few frames"):
        assert len(taken(path, 8, rule="gap")) == 8
    else:
        assert told in why(path, rule="gap")


@pytest.mark.parametrize("wrong", [{"rule": "first"}, {"frames": 0}, {"side": 1.5}, {"rate": -1}, {"rate": True}])
def test_other_arguments_are_refused(tmp_path, refused, wrong):
    with refused(*wrong):
        clip(tmp_path, **{"frames": 8, "side": 16} | wrong)


def test_a_video_without_pyav_names_the_install(tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with refused("pip install av"):
        clip(tmp_path / "a.mp4", 8, 16)
    assert taken(folder(tmp_path / "a", 8), 8) == list(range(8)) and videos.RULES == ("middle", "gap")
