"""Files and the shards made from them are recognized as the same videos."""

import csv
import pathlib

import ml_collections
import numpy as np
import pytest

from configs import common
from invnext_jax.data import copies, files, held_out, train_dataset
from invnext_jax.data.manifest import read_manifest
from invnext_jax.dataset_prep import indexing, sharding, tfds_index
from invnext_jax.dataset_prep.reencode import Encoding
from invnext_jax.errors import UserError
from invnext_jax.evaluation import split_checks

COLUMNS = "path,source,start,end,record,original,original_start,original_end"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, videos):
    """Manifests of eight files, of shards made from them, and of shards made from those shards."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "raw").mkdir()
    rows = ["path,source,start,end,sar,transfer,flags"]
    for number in range(8):
        videos.write(folder / "raw" / f"{number}.mp4", frames=number + 9)
        flags = "tiny" if number == 3 else ""
        rows.append(f"../lists/../raw/{number}.mp4,{'ab'[number % 2]},,,4:3,pq,{flags}")
    (folder / "lists").mkdir()
    (folder / "lists" / "raw.csv").write_text("\n".join(rows) + "\n")
    manifests = [str(folder / "lists" / "raw.csv")]
    options = sharding.ShardingOptions(shards=2, progress=False)
    for short_side in (32, 16):
        out = str(folder / f"shards{short_side}")
        sharding.prepare_shards(manifests[-1], out, "train", Encoding(short_side), options)
        manifests.append(f"{out}/train.csv")
    return manifests


def test_files_and_their_shards_are_copies_in_both_directions(prepared):
    raw, shards, again = map(read_manifest, prepared)
    same = {row: row for row in range(8)}
    for first, second in ((raw, shards), (shards, raw), (shards, again), (raw, again)):
        assert copies.find_copies(first, second) == same
    assert copies.find_copies(raw, shards, [0, 1], [1, 2]) == {1: 1}


def test_shards_keep_the_columns_by_which_videos_are_filtered(prepared):
    for name in prepared[1:]:
        with open(name) as file:
            rows = list(csv.DictReader(file))
        assert {(row["sar"], row["transfer"]) for row in rows} == {("4:3", "pq")}
        assert [row["flags"] for row in rows] == ["", "", "", "tiny", "", "", "", ""]
        assert {row["original_start"] + row["original_end"] for row in rows} == {""}


def test_indexing_shards_says_that_they_have_a_manifest(prepared, tmp_path, caplog):
    written = pathlib.Path(prepared[1])
    options = indexing.IndexOptions(workers=1, progress=False)
    tfds_index.index_dataset(written.parent, tmp_path / "new.csv", options=options)
    assert f"{written} is the manifest of these shards. Use it instead of" in caplog.text


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_held_out_files_and_their_records_are_on_the_same_side(prepared, count):
    mixed = read_manifest(",".join(prepared))
    assert train_dataset.count_repeats(mixed) == 16
    rows = set(held_out.held_out_rows(mixed, min(count, 4)).tolist())
    assert {row + 8 * part for row in {row % 8 for row in rows} for part in range(3)} == rows
    assert not held_out.describe_copies(mixed, min(count, 4))


def test_the_note_of_evaluations_counts_shards_of_training_files(prepared):
    config = ml_collections.ConfigDict(
        {"train_manifest": prepared[1], "val_manifest": prepared[0], "same_manifest": False}
        | {"tasks": (), "data": common.data()}
    )
    report = split_checks.compare_splits(config, (), ())
    assert report.facts["copies"] == 8 and report.facts["repeats"] == 0
    assert "8 of 8 held-out videos are also training videos (same name or content" in " ".join(
        report.notes
    )


@pytest.fixture
def read(tmp_path):
    """Returns a function that writes and reads a manifest with the given rows and columns."""

    def write(*rows, columns=COLUMNS):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
        path.write_text("\n".join([columns, *rows]) + "\n")
        return read_manifest(path)

    return write


def test_segments_in_shards_are_copies_if_they_overlap_in_the_file(read, tmp_path):
    video = tmp_path / "a.mp4"
    raw = read("a.mp4,s,0,5,,,,", "a.mp4,s,5,10,,,,", "./a.mp4,s,,,,,,", "b.mp4,s,,,,,,")
    shards = read(f"x,s,,,0,{video},5,10", f"x,s,1,2,1,{video},3,", f"x,s,,3,2,{video},,4")
    assert copies.find_copies(raw, shards, [0, 1]) == {0: 1, 1: 0, 2: 0}
    assert copies.find_copies(raw, shards, [0, 3]) == {1: 0, 2: 0}  # record 1 is 4 to 5 seconds
    assert copies.find_copies(shards, raw, [0]) == {1: 0, 2: 0}
    _, times_n2 = copies.name_originals(shards)
    np.testing.assert_array_equal(times_n2, [[5, 10], [4, 5], [0, 3]])


def test_times_in_shards_of_earlier_versions_are_unknown(read, tmp_path):
    columns = COLUMNS.removesuffix(",original_start,original_end")
    rows = [f"x,s,,,{number},{tmp_path}/a.mp4" for number in range(3)]
    shards, raw = read(*rows, columns=columns), read("a.mp4,s,5,10,,,,", "b.mp4,s,,,,,,")
    assert copies.find_copies(shards, raw) == {0: 0}
    assert copies.find_copies(raw, shards) == {0: 0, 1: 0, 2: 0}
    assert not copies.find_repeats(shards) and not train_dataset.count_repeats(shards)
    assert train_dataset.count_repeats(read(*rows, rows[1], columns=columns)) == 1


def test_records_of_the_same_part_of_a_file_are_repeats(read, tmp_path):
    video = tmp_path / "a.mp4"
    rows = [
        f"x,s,,,0,{video},,",
        f"y,s,,,0,{video},,",
        f"y,s,,,1,{video},2,3",
        f"{video},s,2,3,,,,",
    ]
    part = read(*rows, f"{video},s,0,,,,,", f"{video},s,1,3,,,,")
    assert copies.find_repeats(part) == {1: 0, 3: 2, 4: 0}
    assert train_dataset.count_repeats(part) == 3


def test_other_files_and_columns_of_files_are_not_compared(read, tmp_path):
    raw = read("a.mp4,s,,,,x.mp4,no number,")  # read for records only
    assert not raw.original.any() and np.isnan(raw.original_times).all()
    assert not copies.find_copies(raw, read("x,s,,,0,/elsewhere/a.mp4,,"))
    with pytest.raises(UserError, match="'no number' in column 'original_start' is not a number"):
        read("a,s,,,0,x.mp4,no number,")


def test_addresses_with_secrets_are_not_mixed_up(read, monkeypatch):
    monkeypatch.setattr(files, "check_protocol", lambda _: None)  # needs a package
    # The column has no secrets, so that different addresses may look equal in it.
    raw = read("https://h/v?key=1,s,,,,,,", "https://h/w.mp4,s,,,,,,")
    shards = read("x,s,,,0,https://h/v?key=REDACTED,,", "x,s,,,1,https://h/w.mp4,,")
    assert copies.find_copies(raw, shards) == {1: 1}


def test_segments_of_a_record_without_original_are_compared_by_their_own_times(read, tmp_path):
    columns = COLUMNS.removesuffix(",original_start,original_end")
    part = read("x,s,0,5,0,", "x,s,5,10,0,", f"x,s,,,1,{tmp_path}/a.mp4", columns=columns)
    assert copies.find_copies(part, part, [0, 2], [1]) == {}
    assert copies.find_copies(part, part, [0, 2], [0, 1]) == {0: 0}
