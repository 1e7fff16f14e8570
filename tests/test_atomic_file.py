import pytest

from invnext_jax import atomic_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    atomic_file.write_text(path, "one ä \udcff\n")
    assert path.read_bytes() == b"one \xc3\xa4 \\udcff\n"
    with atomic_file.atomic_path(path) as part:
        part.write_text("half")
        assert part.parent == path.parent and part.name.startswith(".")
        assert path.read_bytes().startswith(b"one")
    assert path.read_text() == "half" and names(path.parent) == ["a.txt"]


def test_a_failure_changes_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_file.atomic_path(path) as part:
        part.write_text("half")
        raise KeyError
    with pytest.raises(FileNotFoundError), atomic_file.atomic_path(path):
        pass  # nothing is written
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_concurrent_writers_do_not_interfere(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_file.atomic_path(path) as one, atomic_file.atomic_path(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"


def test_only_the_files_of_killed_writers_are_removed(tmp_path):
    left = [".a[1].txt.12ab.part", ".a[1].txt.34cd.part"]
    others = [".a1.txt.12ab.part", "a[1].txt", ".a[1].txt.part.md"]
    for name in left + others:
        (tmp_path / name).touch()
    atomic_file.remove_temporary_files(tmp_path / "a[1].txt")
    assert names(tmp_path) == sorted(others)
