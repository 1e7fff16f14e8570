from invnext_jax.checkpointing import reader


def test_only_names_with_the_digits_0_to_9_are_steps(tmp_path):
    for name in ("12", "3", "\u00b2", "\u0663", "5.damaged"):
        (tmp_path / name).mkdir()
    assert reader.finished_steps(tmp_path) == [3, 12]
