import pytest

from configs import stage1, stage2
from invnext_jax import start_log


def test_the_log_has_the_numbers_of_whole_patches_of_a_mask():
    config = stage1.get_config("tiny")
    config.mask.update(kind="tube", ratio=0.8)  # 12.8 of 16 patches
    text = "mask tube: 4 of the 16 patches of a frame are visible, 75.0% are masked"
    assert start_log.describe_mask(config) == text
    config.mask.kind = "multi_block"
    text = "6 of the 16 patches of a frame are visible, 62.5% are masked"  # Stage 1 uses one mask
    assert start_log.describe_mask(config) == f"mask multi_block: {text}"
    config = stage2.get_config("tiny")
    text = "6 and 3 of the 16 patches of a frame are visible, 62.5% and 81.2% are masked"
    assert start_log.describe_mask(config) == f"mask multi_block: {text}"
    config.mask.max_temporal_keep = 0.5
    text = "6 and 3 of the 16 patches of a frame are visible in the first 4 of 8 frames, "
    assert start_log.describe_mask(config) == f"mask multi_block: {text}81.2% and 90.6% are masked"


def test_the_log_always_has_the_size_of_the_clips():
    config = stage1.get_config("tiny")
    assert start_log.describe_clips(config) == "clips of 8 frames of 32 x 32 pixels"
    config.data.frames = 16
    assert start_log.describe_clips(config).endswith("for 8 frames of 32 x 32 is interpolated")


@pytest.mark.parametrize(("decay", "steps", "share"), [(0.9999, 50, "100%"), (0.999, 800, "45%")])
def test_an_average_that_is_too_slow_for_the_run_is_noticed(decay, steps, share):
    config = stage1.get_config("tiny")
    config.update(total_steps=steps, ema={"decay": decay})
    assert f"still consists of {share} initial values" in start_log.describe_initial_share(config)


@pytest.mark.parametrize(("decay", "steps"), [(0.0, 1), (0.99, 800), (0.9999, 100_000)])
def test_an_average_that_forgets_the_initial_values_is_not_noticed(decay, steps):
    config = stage1.get_config("tiny")
    config.update(total_steps=steps, ema={"decay": decay})
    assert not start_log.describe_initial_share(config)
