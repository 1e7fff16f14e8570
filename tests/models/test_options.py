"""Options of the model are checked by the modules that own them."""

import pytest

from configs import stage1
from invnext_jax.errors import UserError
from invnext_jax.models import attention, decoder, dot_general, encoder, predictor, scan


@pytest.mark.parametrize(
    ("check", "field", "value", "message"),
    [
        (
            encoder,
            "data.size",
            36,
            "config.data.size=36 must be divisible by config.encoder.patch=8",
        ),
        (
            encoder,
            "encoder.size",
            36,
            "config.encoder.size=36 must be divisible by config.encoder.patch",
        ),
        (
            encoder,
            "encoder.width",
            65,
            "config.encoder.width=65 must be divisible by encoder.heads=",
        ),
        (
            predictor,
            "predictor.width",
            65,
            "config.predictor.width=65 must be divisible by predictor.h",
        ),
        (
            *(predictor, "predictor.width", 66),
            "config.predictor.width=66 of kind 'modernbert' must be divisible by twice predictor.h",
        ),
        (predictor, "predictor.kind", "gru", "predictor.kind='gru' must be one of 'modernbert', "),
        (
            *(dot_general, "quantize_frozen", "int4"),
            "config.quantize_frozen='int4' must be one of ('', 'auto', 'int8', 'float8')",
        ),
        (dot_general, "dtype", "half", "config.dtype='half' must be 'float32' or 'bfloat16'"),
        (attention, "attention", "flash", "config.attention='flash' must be one of"),
        (
            *(attention, "attention", "splash"),
            "config.attention='splash' needs a TPU, and this is a CPU: set it to 'auto'",
        ),
        (decoder, "decoder.noise_draws", 0, "config.decoder.noise_draws=0 must be at least 1"),
        (decoder, "decoder.chunks", -1, "config.decoder.chunks=-1 must be at least 1"),
        (decoder, "decoder.width", 0, "config.decoder.width=0 must be at least 1"),
        (scan, "remat", "some", "config.remat='some' must be one of ('none', 'dots', 'full')"),
        (scan, "scan_unroll", 0, "config.scan_unroll=0 must be at least 1"),
    ],
)
def test_invalid_option_is_refused(check, field, value, message):
    config = stage1.get_config("tiny")
    check.check_config(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as caught:
        check.check_config(config)
    assert str(caught.value).startswith(message)
