import subprocess
import sys

import pytest

_PROGRAM = """
import sys
from invnext_jax.monitoring import tensorboard_events
assert "torch" not in sys.modules
import torch
assert torch.ones(2).sum() == 2
"""


@pytest.mark.parity
def test_pytorch_is_not_imported_and_can_be_imported_later():
    pytest.importorskip("torch", reason="`make test-parity` installs PyTorch")
    subprocess.run([sys.executable, "-c", _PROGRAM], check=True)
