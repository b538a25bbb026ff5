"""Images in tar and Parquet files: reading, indexing, errors."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import polars as pl
import pytest

from assay.errors import DataError
from assay.images.decode import decode
from assay.labels import samples as samples_module
from assay.labels import shards
from assay.labels.readers import shard_index
from assay.labels.readers import shards as shard_reader
from assay.labels.readers.read import DataSettings, read_whole
from assay.labels.readers.to_label import find_images
from assay.labels.samples import Samples
from assay.labels.subset import without
from assay.labels.writers.formats import WRITERS
from assay.plan.plan import from_source
from assay.progress import NoProgress
from assay.scale.indexing import index_shards
from factories import put

JPEG = b"\xff\xd8\xff"


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return written.getvalue()


def labelled(label: object, *names: str) -> dict[str, bytes]:
    """Return images that hold their own names, each with its label as JSON."""
    images = {f"{name}.jpg": JPEG + name.encode() for name in names}
    return images | {f"{name}.json": json.dumps({"label": label}).encode() for name in names}


def put_shards(folder: Path, **shards: Mapping[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, members in shards.items():
        (folder / f"{name}.tar").write_bytes(tar_bytes(members))
    return folder


def read_shards(*given: str | Path, **settings: object) -> Samples:
    data = DataSettings.model_validate({"shards": [str(one) for one in given], **settings})
    return read_whole(data, base=Path.cwd())


def labels(samples: Samples) -> dict[str, object]:
    return dict(zip(samples.ids, samples.table["label:label"], strict=True))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return put_shards(tmp_path / "shards", a=labelled("cat", "1", "x/2"), b=labelled("dog", "3"))


def test_images_and_labels_of_tar_files(two: Path) -> None:
    samples = read_shards(two / "*.tar")
    assert labels(samples) == {"1.jpg": "cat", "x/2.jpg": "cat", "3.jpg": "dog"}
    assert [image.read_bytes() for image in samples.paths] == [JPEG + name for name in (b"1", b"x/2", b"3")]
    assert len(set(samples.hashes)) == 3
    samples.write(two / "samples.parquet")
    assert list(Samples.read(two / "samples.parquet").paths) == list(samples.paths)


@pytest.mark.parametrize("pattern", ["{0..1}.tar", "*.tar", "", "[01].tar"])
def test_shards_are_named_by_a_range_a_pattern_or_their_folder(tmp_path: Path, pattern: str) -> None:
    put_shards(tmp_path / "s", **{"0": labelled("a", "1"), "1": labelled("b", "2")})
    assert len(read_shards(tmp_path / "s" / pattern)) == 2
    assert from_source(tmp_path / "s" / pattern).plan.data.shards == (os.path.abspath(tmp_path / "s" / pattern),)


def test_images_of_one_name_are_told_apart_by_their_shard(tmp_path: Path) -> None:
    put_shards(tmp_path / "s", a=labelled("cat", "1"), b=labelled("dog", "1"))
    assert labels(read_shards(tmp_path / "s")) == {"a.tar/1.jpg": "cat", "b.tar/1.jpg": "dog"}


def test_shards_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder, label in (("x", "cat"), ("y", "cat")):
        put_shards(tmp_path / folder, **{"00": labelled(label, "1")})
    samples = read_shards(tmp_path / "*" / "00.tar")
    assert labels(samples) == {"x/00.tar/1.jpg": "cat", "y/00.tar/1.jpg": "cat"}
    indexed = index_shards([str(tmp_path / "*" / "00.tar")], executor=lambda *_: iter(()), progress=NoProgress())
    assert indexed.prefixes == ("x/00.tar/", "y/00.tar/")


def test_an_image_that_cannot_be_read_is_left_out_alone(tmp_path: Path) -> None:
    samples = read_shards(put_shards(tmp_path / "s", a=labelled("cat", "1"), b=labelled("dog", "1")))
    assert without(samples, {"a.tar/1.jpg": "damaged"}).ids == ["b.tar/1.jpg"]


def test_a_class_file_and_a_split_by_the_names_of_shards(tmp_path: Path) -> None:
    one = {"1.jpg": JPEG + b"1", "1.cls": b"7\n"}, {"2.jpg": JPEG + b"2", "2.cls": b"8"}
    put_shards(tmp_path / "s", **{"train-000": one[0], "val-000": one[1]})
    samples = read_shards(tmp_path / "s")
    assert labels(samples) == {"1.jpg": "7", "2.jpg": "8"}
    assert samples.table["split"].to_list() == ["train", "val"]


def test_cells_are_read_some_at_a_time_as_if_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for texts in (
        ['{"a": 1}', None, '{"b": "x"}', '{"a": 2, "b": null}', None],
        ['{"a": 1}', '{"a": 2}', '{"a": "x"}', None],
        ['{"a": null}', '{"a": null}', '{"a": 1.5}'],
        [None, None, None],
    ):
        whole = shard_reader._records(texts)
        monkeypatch.setattr(samples_module, "CHUNK", 2)
        assert shard_reader._cells(pl.Series(texts, dtype=pl.String)).equals(whole)


def test_labels_of_a_table_beside_the_shards(two: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,kind\n1.jpg,new\n3,old\ngone.jpg,old\n")
    samples = read_shards(two, labels=str(tmp_path / "labels.csv"))
    assert dict(zip(samples.ids, samples.table["label:kind"], strict=True)) == {"1.jpg": "new", "3.jpg": "old"}
    assert [one.path for one in samples.left_out] == ["gone.jpg"]


def parquet(path: Path, **columns: object) -> Path:
    cells = [{"bytes": JPEG + str(row).encode(), "path": None} for row in range(5)]
    about = {
        "info": {"features": {"photo": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}
    }
    frame = pl.DataFrame({"photo": cells, "label": [0, 1, 0, -1, 1], "thumb": [b"x"] * 5} | columns)
    frame.write_parquet(path, row_group_size=2, metadata={"huggingface": json.dumps(about)})
    return path


def test_images_of_a_parquet_file_with_the_names_of_its_classes(tmp_path: Path) -> None:
    samples = read_shards(parquet(tmp_path / "a.parquet"))
    assert samples.table["label:label"].to_list() == ["cat", "dog", "cat", None, "dog"]
    assert samples.space["label"].classes == ("cat", "dog")
    assert [image.read_bytes() for image in samples.paths] == [JPEG + str(row).encode() for row in range(5)]
    assert samples.ids[3] == "0000003.jpg"


def test_a_parquet_file_without_the_column_of_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'face' of images. Its columns are 'photo', 'label', 'thumb'"):
        read_shards(parquet(tmp_path / "a.parquet"), image="face")
    pl.DataFrame({"a": [1], "b": ["x"]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: has no column of images. Its columns are 'a', 'b'"):
        read_shards(tmp_path / "b.parquet")


def test_an_index_is_made_once_and_again_where_the_shard_has_changed(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_shards(two)
    monkeypatch.setattr(shard_index, "write_index", lambda *job: pytest.fail("indexed again"))
    assert len(read_shards(two)) == 3
    monkeypatch.undo()
    put_shards(two, b=labelled("cow", "4", "5"))
    assert labels(read_shards(two)) == {"1.jpg": "cat", "x/2.jpg": "cat", "4.jpg": "cow", "5.jpg": "cow"}


def test_shards_are_indexed_alike_by_processes_of_their_own(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = read_shards(two, index=str(two / "here"))
    monkeypatch.setattr(shard_index, "SMALL", 0)
    monkeypatch.setattr(shard_index, "cores", lambda: 1)
    there = read_shards(two, index=str(two / "there"))
    assert here.table.equals(there.table)


def test_bad_members_are_listed_by_shard_and_name(tmp_path: Path) -> None:
    folder = put_shards(tmp_path / "s", a=labelled("cat", "1") | {"/etc/2.jpg": JPEG, "3.jpg": b"", "../4.jpg": JPEG})
    with tarfile.open(folder / "a.tar", "a") as tar:
        link = tarfile.TarInfo("5.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    left_out = {one.path: one.reason.partition(":")[0] for one in read_shards(folder).left_out}
    assert left_out == {
        "a.tar//etc/2.jpg": "its name leads out of the shard",
        "a.tar/3.jpg": "an empty file (0 bytes)",
        "a.tar/../4.jpg": "its name leads out of the shard",
        "a.tar/5.jpg": "a link or a device, which is not followed",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar_bytes(labelled("a", "1", "2"))[:2000], "is cut off or damaged"),
        (tar_bytes({"1.jpg": JPEG})[:1024] + b"?" * 512, "what follows byte 1,024 is no header"),
        (b"<!doctype html><title>Log in", "is an HTML page, and no shard"),
        (b"\x1f\x8b" + b"0" * 600, "is an archive, and no shard. Unpack it"),
        (b"", "is an empty file"),
        (tar_bytes({"1.jpg": JPEG, "1.json": b"{"}), "1.json: is no json file"),
    ],
)
def test_what_is_no_sound_shard_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_shards(tmp_path / "a.tar")
    assert not list(tmp_path.rglob("*.parquet"))


def test_shards_without_an_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its 1 shards hold no image that can be used"):
        read_shards(put_shards(tmp_path / "s", a={"1.txt": b"a"}))


def test_a_shard_that_is_gone_or_was_changed_since_it_was_indexed(two: Path) -> None:
    image = read_shards(two).paths[0]
    (two / "a.tar").write_bytes(tar_bytes(labelled("cat", "9")))
    assert not image.exists()
    with pytest.raises(DataError, match=r"a\.tar: has changed since it was indexed"):
        decode(image)
    (two / "a.tar").unlink()
    with pytest.raises(DataError, match=r"a\.tar: cannot be read \(No such file"):
        decode(image)


def test_a_shard_that_is_listed_and_missing(two: Path) -> None:
    listed = [{"name": f"{name}.tar", "images": 1} for name in "abcd"]
    (two / "shards.json").write_text(json.dumps({"key": "0", "shards": listed}))
    with pytest.raises(DataError, match=r"2 of the 4 shards that shards\.json lists are missing, such as 'c\.tar'"):
        read_shards(two)
    assert len(read_shards(two / "*.tar")) == 3
    (two / "shards.json").write_text("[]")
    assert len(read_shards(two)) == 3


def test_they_are_labelled_and_exported_like_files(two: Path, tmp_path: Path) -> None:
    files = find_images(two).files
    assert [(name, image.read_bytes()) for name, image in files[:1]] == [("1.jpg", JPEG + b"1")]
    WRITERS["folder"](read_shards(two), tmp_path / "out")
    assert (tmp_path / "out" / "cat" / "1.jpg").read_bytes() == JPEG + b"1"


def test_a_folder_of_classes_with_a_stray_archive_holds_no_shards(two: Path, tmp_path: Path) -> None:
    put(tmp_path / "photos", "red/1.jpg", "backup.tar")
    assert shards.names_shards(two)
    assert not shards.names_shards(tmp_path / "photos")


# Addresses.


@pytest.fixture
def http(tmp_path: Path) -> Iterator[str]:
    """A server of a folder, which never answers for what is called `hangs`."""
    released = threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if "hangs" in self.path:
                released.wait(30)
            elif "error" in self.path:
                self.send_error(int(self.path[-7:-4]))
            else:
                super().do_GET()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    put_shards(tmp_path / "www", a=labelled("cat", "1"), b=labelled("dog", "2"))
    (tmp_path / "www" / "login.tar").write_text("<html>Log in</html>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: Handler(*given, directory=str(tmp_path / "www")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    released.set()
    server.shutdown()


def test_shards_at_addresses(tmp_path: Path, http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, image in (("a", "1"), ("b", "2")):
        with fsspec.open(f"memory://set/{name}.tar", "wb") as file:
            file.write(tar_bytes(labelled(name, image)))
    put_shards(tmp_path / "files", a=labelled("a", "1"), b=labelled("b", "2"))
    for given in ("memory://set/*.tar", f"file://{tmp_path}/files/*.tar", f"{http}/{{a..b}}.tar", f"{http}/a.tar"):
        expanded = [f"{http}/a.tar", f"{http}/b.tar"] if ".." in given else [given]
        samples = read_shards(*expanded, index=str(tmp_path / "index"))
        with monkeypatch.context() as patch:
            patch.setattr(shards, "BLOCK", 513)  # parts of images, also from a server that knows no ranges
            content = [image.read_bytes() for image in samples.paths]
        assert content == [JPEG + b"1", JPEG + b"2"][: len(samples)]


def test_an_address_on_the_command_line_is_as_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_shards(tmp_path / "files", a=labelled("a", "1"), b=labelled("b", "2"))
    with fsspec.open("memory://typed/set/a.tar", "wb") as file:
        file.write(tar_bytes(labelled("cat", "1")))
    monkeypatch.chdir(tmp_path)
    here = f"file://{tmp_path}/files"
    for typed, names in (
        (f"{here}/*.tar", ["1.jpg", "2.jpg"]),
        (f"{here}/", ["1.jpg", "2.jpg"]),
        (f"{here}/b.tar", ["2.jpg"]),
        ("memory://typed/set/", ["1.jpg"]),
    ):
        assert [name for name, _ in find_images(Path(typed)).files] == names
        assert from_source(Path(typed)).plan.data.shards


def test_a_list_and_a_table_of_images_to_label_at_addresses(
    tmp_path: Path, http: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "photos/1.jpg", "2.jpg")
    put(tmp_path / "www", "list.txt", "table.csv")
    (tmp_path / "www" / "list.txt").write_text("photos/1.jpg\n2.jpg\n")
    (tmp_path / "www" / "table.csv").write_text("image\n1.jpg\n")
    monkeypatch.chdir(tmp_path)
    names = {"photos/1.jpg": tmp_path / "photos" / "1.jpg", "2.jpg": tmp_path / "2.jpg"}
    assert dict(find_images(Path(f"{http}/list.txt")).files) == names
    assert dict(find_images(Path(f"{http}/table.csv"), root=Path("photos")).files) == {"1.jpg": names["photos/1.jpg"]}
    with pytest.raises(DataError, match="there is no such file"):
        find_images(Path(f"{http}/gone.csv"))


def test_a_table_at_an_address(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content, kinds in ((b"image,kind\n1.jpg,new\n3,old\n", ["new", "old"]), (b"image,kind\n3,x\n", ["x"])):
        with fsspec.open("memory://tables/labels.csv", "wb") as file:
            file.write(content)
        samples = read_shards(two, labels="memory://tables/labels.csv")
        assert samples.table["label:kind"].to_list() == kinds
    assert from_source(Path("memory://tables/labels.csv")).plan.data.table == Path("memory://tables/labels.csv")


def test_what_goes_wrong_at_addresses(tmp_path: Path, http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "TIMEOUT", 0.2)
    for given, message in (
        (f"{http}/gone.tar", "there is no such file"),
        (f"{http}/login.tar", "is an HTML page"),
        (f"{http}/hangs.tar", "does not answer"),
        (f"{http}/error403.tar", "Check the credentials"),
        (f"{http}/error503.tar", "its server has failed \\(503\\). Try again later"),
        ("s3://bucket/a.tar", "pip install s3fs"),
        ("nosuch://a.tar", "Check the address"),
    ):
        with pytest.raises(DataError, match=message):
            read_shards(given, index=str(tmp_path / "index"))


def test_missing_credentials_are_named() -> None:
    with pytest.raises(DataError, match="Check the credentials"), shards.reaching("s3://b/a.tar"):
        raise type("NoCredentialsError", (Exception,), {})("Unable to locate credentials")
