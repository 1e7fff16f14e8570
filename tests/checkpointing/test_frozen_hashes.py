import numpy as np
import pytest

from invnext_jax.checkpointing.frozen_hashes import hash_groups


def tree():
    return {
        "teacher": {"a": {"kernel": np.arange(6.0).reshape(2, 3)}, "b": np.float32(1)},
        "target": {"w": np.zeros((2, 2), np.float32)},
    }


def test_equal_trees_have_equal_hashes_in_any_order_and_memory_layout():
    first, second = tree(), tree()
    second["teacher"] = dict(reversed(second["teacher"].items()))
    second["teacher"]["a"]["kernel"] = np.asfortranarray(second["teacher"]["a"]["kernel"])
    assert hash_groups(first) == hash_groups(second)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["a"]["kernel"].__setitem__((1, 2), np.nextafter(5.0, 6.0)),
        lambda t: t["a"].update(kernel=t["a"]["kernel"].T),
        lambda t: t["a"].update(kernel=t["a"]["kernel"].astype(np.float32)),
        lambda t: t.update(c=t.pop("b")),
        lambda t: t["a"].update(kernel=t["a"]["kernel"].reshape(3, 2)),
    ],
    ids=["value", "order", "dtype", "name", "shape"],
)
def test_any_change_of_a_group_changes_its_hash_only(change):
    before, changed = hash_groups(tree()), tree()
    change(changed["teacher"])
    after = hash_groups(changed)
    assert after["teacher"] != before["teacher"]
    assert after["target"] == before["target"]
