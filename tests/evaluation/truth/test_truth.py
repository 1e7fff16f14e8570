import numpy as np
import pytest

from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.truth import MAX_LOGGED, BadTruth, SkippedEntries, TruthBatches


class Numbers:
    name = "numbers"

    def __init__(self, count, bad=()):
        self.videos, self._bad = np.arange(count), bad

    def __len__(self):
        return len(self.videos)

    def load(self, row):
        if row in self._bad:
            raise BadTruth(f"row {row} is torn\nin two", "truncated")
        return {"video": np.full((2, 1), row, np.uint8), "present": np.ones(2, bool)}


def rows_of(batches):
    found = list(batches)
    index = np.concatenate([batch["index"] for batch in found])
    video = np.concatenate([batch["video"] for batch in found])
    np.testing.assert_array_equal(video[:, 0, 0], np.maximum(index, 0))
    return index.tolist()


@pytest.mark.parametrize("threads", [1, 3])
def test_bad_rows_are_skipped_and_counted(threads):
    batches = TruthBatches(Numbers(8, bad=(2, 5)), 4, threads=threads)
    assert len(batches) == 2
    assert rows_of(batches) == [0, 1, 3, 4, 6, 7, -1, -1]
    assert batches.skipped.kinds == {2: "truncated", 5: "truncated"}
    assert "2 of 8 rows were skipped: row 2 is torn" in batches.skipped.describe(8)
    assert rows_of(batches) == [0, 1, 3, 4, 6, 7, -1, -1]  # each pass counts separately
    assert len(batches.skipped.reasons) == 2


def test_chosen_rows_keep_their_order():
    assert rows_of(TruthBatches(Numbers(9), 2, rows=[7, 1, 4])) == [7, 1, 4, -1]
    batches = TruthBatches(Numbers(2), 2)
    assert rows_of(batches) == [0, 1] and batches.skipped.describe(2) == ""


def test_without_a_readable_row_there_is_one_sentence():
    with pytest.raises(UserError, match="numbers: none of 2 clips can be read"):
        list(TruthBatches(Numbers(2, bad=(0, 1)), 2))
    with pytest.raises(UserError, match="there are no rows"):
        list(TruthBatches(Numbers(0), 2))


def test_other_errors_end_the_pass():
    class Broken(Numbers):
        def load(self, row):
            return 1 / 0

    with pytest.raises(ZeroDivisionError):
        list(TruthBatches(Broken(3), 2))


def test_only_the_first_damaged_entries_of_a_file_are_logged(caplog):
    skipped = SkippedEntries("a.jsonl")
    assert skipped.reason == "it is empty"
    for number in range(1, 1001):
        skipped.add(f"line {number}", "x" * 10_000)
    assert skipped.count == 1000 and skipped.reason.startswith("line 1000: xx")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == MAX_LOGGED + 1 and max(map(len, messages)) < 300
    assert messages[-1] == "a.jsonl: further damaged entries are counted but not logged"
