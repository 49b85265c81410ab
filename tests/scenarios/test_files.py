import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image

from scenarios.cache import cached
from scenarios.files import read_idx, read_jpeg_npz, read_npz
from scenarios.locate import locate


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDSIM_DATA", raising=False)


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_jpegs(path, images):
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    np.savez(
        path,
        jpeg=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0] + [len(f) for f in files]),
    )


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_idx_files_have_the_shape_they_state(name, tmp_path):
    array = np.arange(60).reshape(3, 4, 5)
    write_idx(tmp_path / name, array)
    assert np.array_equal(read_idx(tmp_path / name), array)


def test_short_label_files_are_read(tmp_path):
    write_idx(tmp_path / "labels", np.array([3, 1]))
    assert read_idx(tmp_path / "labels").tolist() == [3, 1]


@pytest.mark.parametrize("name", ["images", "images.gz"])
@pytest.mark.parametrize("keep", [0, 2, 7, 30])
def test_an_idx_file_cut_short_is_one_line_naming_it(name, keep, tmp_path):
    path = tmp_path / name
    write_idx(path, np.arange(60).reshape(3, 4, 5))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="damaged or cut short") as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_jpegs_are_decoded_once(tmp_path, monkeypatch):
    images = [np.full((8, 8, 3), 60 * i, np.uint8) for i in range(4)]
    path = tmp_path / "train.npz"
    write_jpegs(path, images)
    decoded = read_jpeg_npz("toy", path)
    assert decoded.shape == (4, 3, 8, 8)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded[:, :, 0, 0].astype(int) - np.arange(4)[:, None] * 60).max() <= 2
    monkeypatch.setattr("scenarios.files.decode_images", None)
    assert np.array_equal(read_jpeg_npz("toy", path), decoded)


def test_half_an_npz_is_one_line_naming_it(tmp_path):
    path = tmp_path / "train.npz"
    write_jpegs(path, [np.zeros((8, 8, 3), np.uint8)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (lambda: read_npz(path, "offsets"), lambda: read_jpeg_npz("toy", path)):
        with pytest.raises(ValueError, match="damaged or cut short") as caught:
            read()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_broken_jpeg_inside_names_the_file(tmp_path):
    path = tmp_path / "train.npz"
    np.savez(path, jpeg=np.zeros(10, np.uint8), offsets=np.array([0, 10]))
    with pytest.raises(ValueError, match=r"train\.npz is damaged"):
        read_jpeg_npz("toy", path)


def test_missing_key_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(1))
    with pytest.raises(ValueError, match=r"a\.npz .*labels"):
        read_npz(tmp_path / "a.npz", "labels")


def test_cache_follows_the_source_and_survives_damage(tmp_path):
    source = tmp_path / "source"
    source.write_text("one")
    calls = []

    def make():
        calls.append(1)
        return np.arange(5) + len(calls)

    assert cached("x", source, make).tolist() == [1, 2, 3, 4, 5]
    assert cached("x", source, make).tolist() == [1, 2, 3, 4, 5]
    source.write_text("another")
    assert cached("x", source, make).tolist() == [2, 3, 4, 5, 6]
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:140])
    assert cached("x", source, make).tolist() == [3, 4, 5, 6, 7]
    assert not list((tmp_path / "cache").glob("*.part"))


def test_cached_arrays_may_be_changed_without_changing_the_file(tmp_path):
    source = tmp_path / "source"
    source.write_text("one")
    cached("x", source, lambda: np.zeros(3))[0] = 7.0
    assert cached("x", source, lambda: np.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_without_a_writable_cache_the_array_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "file"))
    assert cached("x", tmp_path / "file", lambda: np.arange(3)).tolist() == [0, 1, 2]


def test_fedsim_data_comes_before_the_data_folder(tmp_path, monkeypatch):
    named, root = tmp_path / "named", tmp_path / "root"
    for folder in (named, root):
        folder.mkdir()
        (folder / "b").write_text("b")
    (root / "a").write_text("a")
    options = {"name": "x", "wanted": ["a", "b"], "root": str(root), "origin": "there"}
    assert locate(**options) == root / "a"
    monkeypatch.setenv("FEDSIM_DATA", str(named))
    assert locate(**options) == named / "b"


def test_downloads_go_where_there_is_room(tmp_path, monkeypatch):
    named, root = tmp_path / "named", tmp_path / "root"
    named.mkdir()

    def download(folder):
        (folder / "a").write_text("a")

    options = {"name": "x", "wanted": ["a"], "root": str(root), "origin": "there"}
    monkeypatch.setenv("FEDSIM_DATA", str(named))
    named.chmod(0o555)
    assert locate(**options, download=download) == root / "a"
    (root / "a").unlink()
    named.chmod(0o755)
    assert locate(**options, download=download) == named / "a"


def test_missing_data_is_one_line_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "absent"))

    def download(folder):
        raise OSError("no route\nto host")

    with pytest.raises(FileNotFoundError) as caught:
        locate(
            name="mnist",
            wanted=["MNIST/raw"],
            root=str(tmp_path / "data"),
            origin="torchvision",
            download=download,
        )
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "mnist not found",
        str(tmp_path / "absent"),
        str(tmp_path / "data"),
        "torchvision",
    ):
        assert part in message
    assert "no route to host" in message
    assert "set FEDSIM_DATA to a folder that holds MNIST/raw" in message
