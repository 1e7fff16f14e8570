"""The PyTorch step of the benchmarks: its kernels and the precision of its products."""

import pytest

torch = pytest.importorskip("torch", reason="`make test-parity` installs PyTorch")
pytest.importorskip("transformers", reason="`make test-parity` installs transformers")

from benchmarks import pytorch_step, synthetic_step  # noqa: E402
from benchmarks.gpu import pytorch  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize(
    "kernel, ran", [("cudnn", "attention_math"), ("flash", "flash_attention_for_cpu")]
)
def test_the_called_attention_kernels_are_reported(stage, kernel, ran):
    # CPUs have no kernel of cuDNN. The next one in the list of priorities that they have is "math".
    row = pytorch.measure_pytorch(stage, "tiny", clips=1, steps=1, kernel=kernel, compiled=False)
    config = synthetic_step.CONFIGS[stage].get_config("tiny")
    assert row["ran"].startswith(ran)
    assert int(row["ran"].split()[-1]) >= config.encoder.depth + config.predictor.depth


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_the_decoder_have_the_precision_of_the_jax_step(dtype):
    config = synthetic_step.CONFIGS["stage1"].get_config("tiny")
    config.batch_size, config.decoder.dtype = 1, dtype
    video = synthetic_step.make_batch(config)["video"]
    step = pytorch_step.PytorchStep(config, video, dtype="bfloat16")
    found = {}
    for name in ("decoder.output", "encoder.embed"):

        def record(_module, _inputs, output, name=name):
            found[name] = output.dtype

        step.model.get_submodule(name).register_forward_hook(record)
    assert step() > 0
    assert found == {"decoder.output": getattr(torch, dtype), "encoder.embed": torch.bfloat16}
