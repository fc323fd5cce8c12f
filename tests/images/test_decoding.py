"""One picture, however it is stored: on the ground asked for where it is transparent, upright as EXIF says."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from ke_metric.images.decoding import TURNS, Decoding, FileTraits, as_rgb, read_picture, traits_of

INK = (200, 30, 60)
ORIENTATION = 0x0112


def cross(size=(24, 16)):
    """A mask without symmetry: 255 where there is ink."""
    mask = Image.new("L", size, 0)
    draw = ImageDraw.Draw(mask)
    draw.line((2, 2, 20, 13), 255, 2)
    draw.rectangle((1, 10, 5, 14), 255)
    return mask


def flattened(mask, ink, ground):
    picture = Image.new("RGB", mask.size, ground)
    picture.paste(ink, mask=mask)
    return np.asarray(picture)


def drawn(mode):
    """A drawing on transparent ground whose hidden colours are those of the ink: without alpha, one flat picture."""
    mask = cross()
    if mode in ("RGBA", "LA"):
        picture = Image.new("RGB" if mode == "RGBA" else "L", mask.size, INK if mode == "RGBA" else 90)
        picture.putalpha(mask)
        return picture
    picture = Image.new("P", mask.size, 0)
    picture.putpalette([*INK, *INK, *[0] * 762])
    picture.paste(1, mask=mask)
    return picture


def sixteen_bit(channels, path):
    """A PNG with 16-bit grey or colours and alpha, which Pillow reads and does not write."""
    import struct
    import zlib

    mask = np.asarray(cross())
    values = [90] if channels == 2 else list(INK)
    rows = np.zeros((*mask.shape, channels), ">u2")
    rows[..., :-1] = np.array(values) * 257
    rows[..., -1] = mask.astype(np.uint16) * 257

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], 16, 4 if channels == 2 else 6, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))


def store(kind, path):
    """Write the drawing as one of the kinds of transparent picture; return its ink."""
    mode, _, suffix = kind.partition(" ")
    file = path / f"x.{suffix}"
    if mode in ("RGBA16", "LA16"):
        sixteen_bit(2 if mode == "LA16" else 4, file)
    elif mode == "bytes":
        drawn("P").save(file, transparency=bytes([0, 255]))
    elif mode == "colour":
        Image.composite(Image.new("RGB", (24, 16), INK), Image.new("RGB", (24, 16), (1, 2, 3)), cross()).save(
            file, transparency=(1, 2, 3)
        )
    elif mode == "grey":
        Image.composite(Image.new("L", (24, 16), 90), Image.new("L", (24, 16), 7), cross()).save(file, transparency=7)
    elif mode == "wide-grey":
        numbers = np.where(np.asarray(cross()) > 0, 90 * 257, 300).astype(np.uint16)
        Image.fromarray(numbers).save(file, transparency=300)
    elif mode == "P":
        drawn("P").save(file, transparency=0)
    else:
        drawn(mode).save(file, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    return file, (90, 90, 90) if mode in ("LA", "LA16", "grey", "wide-grey") else INK


KINDS = [
    *("RGBA png", "RGBA webp", "RGBA tif", "LA png", "LA tif", "P png", "P gif", "bytes png"),
    *("colour png", "grey png", "wide-grey png", "RGBA16 png", "LA16 png"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_transparent_parts_show_the_ground(kind, tmp_path):
    file, ink = store(kind, tmp_path)
    for background, ground in (("white", (255, 255, 255)), ("#204060", (0x20, 0x40, 0x60))):
        picture = read_picture(file, Decoding(background))
        assert np.array_equal(np.asarray(picture), flattened(cross(), ink, ground))
        assert traits_of(picture).transparent
    kept = np.asarray(read_picture(file, Decoding("keep")))
    assert not np.array_equal(kept, flattened(cross(), ink, (255, 255, 255)))


def test_half_transparent_edges_are_mixed(tmp_path):
    layers = np.random.default_rng(0).integers(0, 256, (9, 7, 4)).astype(np.uint8)
    Image.fromarray(layers).save(tmp_path / "x.png")
    share = layers[..., 3:].astype(float) / 255
    mixed = share * layers[..., :3] + (1 - share) * 255
    assert np.abs(np.asarray(read_picture(tmp_path / "x.png")) - mixed).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_that_hides_nothing_changes_nothing(mode, tmp_path):
    picture = Image.effect_noise((30, 20), 90).convert(mode)
    picture.save(tmp_path / "x.png")
    read = read_picture(tmp_path / "x.png")
    assert np.array_equal(np.asarray(read), np.asarray(picture.convert("RGB")))
    assert traits_of(read) == FileTraits(transparent=False, orientation=1, wide=False)


def photograph():
    """A smooth picture without symmetry, wider than high."""
    across, down = np.meshgrid(np.linspace(0, 200, 48), np.linspace(0, 120, 32))
    return Image.fromarray(np.stack([across, down, across / 2 + down], axis=2).astype(np.uint8))


@pytest.mark.parametrize("orientation", [1, *TURNS])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pictures_are_turned_upright(suffix, orientation, tmp_path):
    """A camera stores the pixels turned the other way, so that what EXIF asks for turns them upright."""
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = photograph()
    if orientation in TURNS:
        stored = stored.transpose(back.get(orientation, TURNS[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exact = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}
    stored.save(tmp_path / f"x.{suffix}", exif=exif, **exact.get(suffix, {}))
    picture = read_picture(tmp_path / f"x.{suffix}")
    assert picture.size == (48, 32)
    largest = np.abs(np.asarray(picture).astype(int) - np.asarray(photograph())).max()
    assert largest <= (8 if suffix == "jpg" else 0)
    as_stored = read_picture(tmp_path / f"x.{suffix}", Decoding(exif_orientation=False))
    # Pillow turns a TIFF itself, whoever reads it.
    assert as_stored.size == ((48, 32) if suffix == "tif" else stored.size)
    if suffix != "tif":
        assert traits_of(picture).orientation == orientation
    for again in (as_rgb(picture, "x"), ImageOps.exif_transpose(picture)):
        assert np.array_equal(np.asarray(again), np.asarray(picture)), "it is turned once only"


def test_a_picture_in_memory_is_turned_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    body = io.BytesIO()
    photograph().save(body, "JPEG", exif=exif)
    (tmp_path / "x.jpg").write_bytes(body.getvalue())
    with Image.open(body) as image:
        from_memory = np.asarray(as_rgb(image, "x"))
        assert np.array_equal(from_memory, np.asarray(as_rgb(image.convert("RGB"), "x")))
        assert np.array_equal(from_memory, np.asarray(as_rgb(ImageOps.exif_transpose(image), "x")))
    assert np.array_equal(from_memory, np.asarray(read_picture(tmp_path / "x.jpg")))
    assert from_memory.shape == (48, 32, 3)


@pytest.mark.parametrize("said", [0, 9, 300])
def test_an_orientation_that_means_nothing_is_none(said, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = said
    photograph().save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(read_picture(tmp_path / "x.png")), np.asarray(photograph()))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_cannot_be_read_turns_nothing(tmp_path):
    photograph().save(tmp_path / "x.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff rubbish")
    assert np.array_equal(np.asarray(read_picture(tmp_path / "x.png")), np.asarray(photograph()))
