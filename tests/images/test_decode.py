from __future__ import annotations

import collections
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from i2e_pipeline.core.config import ScoreConfig
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.core.stored_image import NoImage
from i2e_pipeline.images.decode import (
    Decoded,
    Header,
    Rejected,
    decode,
    opaque_rgb,
    perceptual_hashes,
    unfit,
)
from i2e_pipeline.inputs import formats, parquet
from i2e_pipeline.inputs.shard import Shard, ShardError
from tests.examples import examples
from tests.small_models import picture, stored, write_shard

LIMITS = ScoreConfig()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def seen(data: bytes | None, limits: ScoreConfig = LIMITS, side: int = 0) -> Decoded | Rejected:
    return decode(data, limits, pixels, side)


def decoded(data: bytes, side: int = 0) -> Decoded:
    result = seen(data, side=side)
    assert isinstance(result, Decoded), result
    return result


def reason(data: bytes | None, **limits: int) -> Reason:
    result = seen(data, ScoreConfig(**limits))
    assert isinstance(result, Rejected)
    return result.reason


# -- what the bytes are --------------------------------------------------------------------------------------------


def test_null_and_empty_are_told_apart() -> None:
    assert reason(None) is Reason.NULL_IMAGE
    assert reason(b"") is Reason.EMPTY_IMAGE


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><title>404</title>",
        b"<html><body><svg viewBox='0 0 9 9'/></body></html>",
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        b'{"error": 404}',
        b"not found",
        b"BMW",
        b"P3 is no picture",
        b"\0" * 500,
    ],
)
def test_what_is_no_image_says_so(data: bytes) -> None:
    assert reason(data) is Reason.NOT_AN_IMAGE


def test_postscript_is_never_opened() -> None:
    """Catches: Image.open on all formats hands an EPS from the web to Ghostscript."""
    eps = stored(picture(0), "EPS")
    assert reason(eps) is Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize(
    ("format", "share"), [("JPEG", 0.02), ("JPEG", 0.5), ("JPEG", 0.98), ("PNG", 0.5), ("PNG", 0.9), ("WEBP", 0.5)]
)
def test_a_download_that_broke_off_is_truncated(format: str, share: float) -> None:
    data = stored(picture(1, (300, 200)), format)
    assert reason(data[: int(len(data) * share)]) is Reason.TRUNCATED_IMAGE


def test_a_good_header_before_noise_is_broken() -> None:
    data = stored(picture(1), "JPEG")
    assert reason(data[:20] + np.random.default_rng(0).bytes(2000)) is Reason.BROKEN_IMAGE


def test_trailing_junk_is_ignored() -> None:
    data = stored(picture(1), "JPEG")
    assert np.array_equal(decoded(data + b"junk" * 50).pixels, decoded(data).pixels)


def test_the_detail_is_the_same_in_every_run() -> None:
    """Catches: Pillow's own message holds the address of a buffer, and two runs would write different rejects."""
    details = {seen(b"<html>" + bytes([i])).detail for i in (65, 65)}  # type: ignore[union-attr]
    assert details == {"begins with b'<html>A'"}


def test_every_kind_of_corrupt_image_gets_its_reason(real_data: Path) -> None:
    want: dict[str, object] = {
        "empty": {"empty_image": 4},
        "truncated_jpeg": {"truncated_image": 6},
        "png_named_jpg": {"ok": 5},
        "gif": {"ok": 4},
        "cmyk_jpeg": {"ok": 4},
        "1x1": {"too_small": 4},
        "20000x20": {"too_long": 3, "too_small": 1},
        "exif_rotated": {"ok": 5},
        "html_error_page": {"not_an_image": 4},
        "null_image": {"null_image": 3},
        "null_caption": {"ok": 3},
        "nan_caption": {"ok": 4},
        "1mb_caption": {"ok": 3},
        "nul_bytes_in_caption": {"ok": 3},
        "jpeg_header_then_noise": {"broken_image": 2},
        "jpeg_with_trailing_junk": {"ok": 2},
    }
    got: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in pq.read_table(real_data / "pairs/corrupt.parquet", columns=["jpg", "kind"]).to_pylist():
        result = seen(row["jpg"], side=224)
        got[row["kind"]][str(result.reason) if isinstance(result, Rejected) else "ok"] += 1
    assert {kind: dict(count) for kind, count in got.items()} == want


JPEG = stored(picture(2), "JPEG")


@settings(max_examples=examples(150))
@given(
    st.lists(st.tuples(st.integers(0, len(JPEG) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, len(JPEG)),
)
def test_no_bytes_raise(changes: list[tuple[int, int]], end: int) -> None:
    data = bytearray(JPEG)
    for at, value in changes:
        data[at] = value
    assert isinstance(seen(bytes(data[:end])), Decoded | Rejected)


# -- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, Reason.NULL_IMAGE),
        (Header(0), Reason.EMPTY_IMAGE),
        (Header(64_000_001), Reason.TOO_MANY_BYTES),
        (Header(100, (10_000, 5_001)), Reason.TOO_MANY_PIXELS),
        (Header(100, (15, 100)), Reason.TOO_SMALL),
        (Header(100, (16, 160)), None),
        (Header(100, (161, 16)), Reason.TOO_LONG),
        (Header(100), None),
    ],
)
def test_limits(header: Header | None, expected: Reason | None) -> None:
    assert unfit(header, LIMITS) is expected


def test_limits_are_checked_before_anything_is_decoded() -> None:
    """Catches: a decompression bomb of a few kilobytes takes gigabytes."""
    bomb = Image.new("1", (9_000, 9_000))
    data = stored(bomb)
    cut = data[: len(data) // 2]  # decoding would say "truncated"
    assert reason(cut) is Reason.TOO_MANY_PIXELS
    png_of_a_gigapixel = bytearray(stored(picture(0)))
    png_of_a_gigapixel[16:24] = struct.pack(">II", 40_000, 40_000)
    assert reason(bytes(png_of_a_gigapixel)) in (Reason.TOO_MANY_PIXELS, Reason.BROKEN_IMAGE)


def test_too_many_bytes() -> None:
    assert reason(JPEG, max_bytes=len(JPEG) - 1) is Reason.TOO_MANY_BYTES


# -- pixels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = stored(picture(3, (64, 40)), "JPEG", exif=exif, quality=95)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    result = decoded(data)
    assert (result.width, result.height) == upright.size == ((64, 40) if orientation < 5 else (40, 64))
    assert np.array_equal(result.pixels, np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_does_not_cost_the_image() -> None:
    data = stored(picture(3), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 30)
    assert decoded(data).width == 64


@pytest.mark.parametrize("format", ["JPEG", "TIFF", "PNG"])
def test_cmyk_grey_and_palettes_become_rgb(format: str) -> None:
    modes = {"JPEG": ["L", "CMYK"], "TIFF": ["L", "CMYK", "P"], "PNG": ["L", "P", "1", "LA", "RGBA"]}[format]
    for mode in modes:
        assert decoded(stored(picture(4).convert(mode), format)).pixels.shape == (48, 64, 3), mode


def test_what_is_transparent_is_white() -> None:
    """Catches: dropping alpha shows the colour beneath, mostly black."""
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    assert (np.asarray(opaque_rgb(clear)) == 255).all()
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([0, 0, 0] * 256)
    data = stored(palette, "PNG", transparency=0)
    assert (decoded(data).pixels == 255).all()
    gif = stored(palette, "GIF", transparency=0)
    assert (decoded(gif).pixels == 255).all()


def test_16_bit_images_keep_their_greys() -> None:
    """Catches: Pillow's own conversion clips 16 bits at 255, and everything is white."""
    grey = np.tile(np.arange(0, 65536, 1024, dtype=np.uint16), (32, 1))
    result = decoded(stored(Image.fromarray(grey), "PNG"))
    assert np.abs(result.pixels[0, :, 0].astype(int) - np.arange(0, 256, 4)).max() <= 1


def test_16_bit_colours_keep_their_values() -> None:
    """A PNG of Pillow's own has no such mode: IHDR, rows of big-endian numbers, IEND."""
    colours = np.tile(np.arange(0, 65536, 1024, dtype=">u2")[:, None], (32, 1, 3))
    rows = b"".join(b"\0" + row.tobytes() for row in colours)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 32, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(decoded(data).pixels[0].astype(int) - np.arange(0, 256, 4)[:, None]).max() <= 1


def test_cmyk_is_not_inverted() -> None:
    """Catches: Adobe's JPEGs hold CMYK upside down, and a sky becomes brown."""
    sky = Image.new("RGB", (64, 48), (90, 150, 230))
    assert np.abs(decoded(stored(sky.convert("CMYK"), "JPEG")).pixels.astype(int) - (90, 150, 230)).max() < 8


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF", "TIFF", "MPO"])
def test_the_first_frame_of_an_animation_counts(format: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    data = stored(frames[0], format, save_all=True, append_images=frames[1:])
    assert np.abs(decoded(data).pixels[10, 10].astype(int) - (255, 0, 0)).max() < 8


def test_smaller_decoding_of_large_jpegs_changes_little() -> None:
    big = stored(picture(5, (1200, 960)), "JPEG", quality=90)

    def scaled(image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((140, 112), Image.Resampling.BICUBIC), dtype=float)

    full, draft = decode(big, LIMITS, scaled), decode(big, LIMITS, scaled, side=112)
    assert isinstance(full, Decoded)
    assert isinstance(draft, Decoded)
    assert (draft.width, draft.height) == (1200, 960)
    assert np.abs(full.pixels - draft.pixels).mean() < 1
    sizes = [decoded(big, side=side).pixels.shape[1] for side in (0, 300, 121, 120, 60, 30)]
    assert sizes == [1200, 1200, 1200, 600, 300, 150]  # the shorter side never falls below four times the model's


# -- perceptual hash -----------------------------------------------------------------------------------------------


def hash_of(data: bytes) -> int:
    return int.from_bytes(perceptual_hashes(decoded(data).thumb_TT[None])[0].tobytes(), "big")


def bits(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def test_a_hash_does_not_depend_on_the_batch() -> None:
    thumbs = np.stack([decoded(stored(picture(i))).thumb_TT for i in range(20)])
    together = perceptual_hashes(thumbs)
    assert (together.dtype, together.shape) == (np.uint8, (20, 32))
    assert np.array_equal(together, np.concatenate([perceptual_hashes(t[None]) for t in thumbs]))


def test_copies_of_a_picture_have_near_hashes_and_others_far_ones() -> None:
    copies = [stored(picture(6, s), f) for s, f in (((640, 480), "PNG"), ((320, 240), "PNG"), ((640, 480), "JPEG"))]
    hashes = [hash_of(c) for c in copies]
    assert max(bits(hashes[0], h) for h in hashes) <= 31
    others = [hash_of(stored(picture(i))) for i in range(7, 27)]
    assert min(bits(hashes[0], h) for h in others) >= 90


# -- shards --------------------------------------------------------------------------------------------------------

BYTES: list[bytes | None] = [bytes([i]) * 100 for i in range(10)]


def test_rows_are_read_in_order_over_row_groups(tmp_path) -> None:
    path = write_shard(tmp_path / "a.parquet", [*BYTES[:3], None, *BYTES[4:]], group=4)
    with formats.images(Shard(path), "jpg") as reader:
        assert reader.rows == 10
        assert list(reader.read([0, 3, 4, 9])) == [BYTES[0], None, BYTES[4], BYTES[9]]


def test_only_the_row_groups_with_wanted_rows_are_read_and_each_once(tmp_path, monkeypatch) -> None:
    path = write_shard(tmp_path / "a.parquet", BYTES, group=2)
    opened = []
    whole = parquet.ParquetImages._open_group
    monkeypatch.setattr(
        parquet.ParquetImages, "_open_group", lambda self, group: (opened.append(group), whole(self, group))[1]
    )
    with formats.images(Shard(path), "jpg") as reader:
        list(reader.read([2]))
        list(reader.read([3, 8]))  # a second call goes on where the first one was
        list(reader.read([9]))
    assert opened == [1, 4]


def test_a_large_row_group_is_held_a_chunk_at_a_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parquet, "CHUNK_BYTES", 250)
    path = write_shard(tmp_path / "a.parquet", [np.random.default_rng(i).bytes(100) for i in range(10)], group=10)
    with formats.images(Shard(path), "jpg") as reader:
        sizes = []
        for _ in reader.read(range(10)):
            sizes.append(len(reader._chunk))
        assert max(sizes) <= 2


def test_rows_may_also_go_back(tmp_path) -> None:
    path = write_shard(tmp_path / "a.parquet", BYTES, group=4)
    with formats.images(Shard(path), "jpg") as reader:
        assert list(reader.read([9, 1, 0])) == [BYTES[9], BYTES[1], BYTES[0]]


def test_the_struct_of_hugging_face_is_read(tmp_path) -> None:
    column = pa.array([{"bytes": b"a", "path": "x"}, {"bytes": None, "path": "y"}, None])
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    with formats.images(Shard(str(tmp_path / "a.parquet")), "image") as reader:
        with_bytes, with_path, null = reader.read([0, 1, 2])
    assert (with_bytes, null) == (b"a", None)
    assert isinstance(with_path, NoImage)
    assert with_path.reason is Reason.MISSING_IMAGE


def test_errors_name_the_file_and_what_is_wrong(tmp_path) -> None:
    path = write_shard(tmp_path / "a.parquet", BYTES)
    with pytest.raises(ShardError, match=r"a\.parquet has no column `image` .*it has jpg"):
        formats.images(Shard(path), "image")
    with (
        formats.images(Shard(path), "jpg") as reader,
        pytest.raises(ShardError, match="has 10 rows, and row 10 was asked for"),
    ):
        list(reader.read([10]))
    with pytest.raises(ShardError, match="no such file"):
        formats.images(Shard(str(tmp_path / "b.parquet")), "jpg")
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    with pytest.raises(ShardError, match="is not a Parquet file"):
        formats.images(Shard(str(tmp_path / "c.parquet")), "jpg")
    pq.write_table(pa.table({"jpg": [1, 2]}), tmp_path / "d.parquet")
    with pytest.raises(ShardError, match="is int64"):
        formats.images(Shard(str(tmp_path / "d.parquet")), "jpg")
