"""Digests of local videos change with the contents; other files have none."""

from invnext_jax.data import fingerprints, manifest


def read(path, *rows):
    path.write_text("\n".join(["path,source,record", *rows]) + "\n")
    return manifest.read_manifest(path)


def test_local_files_are_listed_once(tmp_path):
    rows = ("b.mp4,x,", "a.mp4,x,", "b.mp4,x,", "file:///c.mp4,x,", "s.array_record,x,0")
    first = read(tmp_path / "a.csv", *rows, "s.array_record,x,1")
    world = manifest.read_manifest("world:simple/train?videos=3")
    names = ["b.mp4", "a.mp4", "s.array_record"]
    assert fingerprints.list_files(first) == [str(tmp_path / name) for name in names]
    assert fingerprints.list_files(world) == []


def test_digests_depend_on_contents_and_unreadable_files_have_none(tmp_path):
    paths = [str(tmp_path / name) for name in ("a", "b", "missing", "nul\0")]
    (tmp_path / "a").write_bytes(b"x" * 200_000)
    (tmp_path / "b").write_bytes(b"x" * 200_000)
    first = list(fingerprints.digest_files(paths))
    assert first[0] == first[1] != "" and first[2:] == ["", ""]
    with (tmp_path / "b").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"y")
    second = list(fingerprints.digest_files(paths))
    assert second[0] == first[0] and second[1] not in (first[0], "")


def test_digests_keep_the_order_of_many_files(tmp_path):
    paths = [tmp_path / str(number) for number in range(3)] * 700  # more than one group
    for number, path in enumerate(paths[:3]):
        path.write_bytes(b"x" * number)
    found = list(fingerprints.digest_files(paths))
    assert len(set(found)) == 3 and found == found[:3] * 700
