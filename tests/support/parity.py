"""Models of transformers with random weights, for the parity tests.

torch and transformers are imported inside functions, so that other tests do not wait for them.
"""

import os

import numpy as np


def import_transformers():
    """Returns the modules torch and transformers, with downloads disabled."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


def randomise(torch, model, seed=0):
    """Sets all parameters, including norms and biases, to random values to detect a missing one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            table = any(part in name for part in ("position", "token", "class_embed", "probe"))
            matrix = parameter.ndim > 1 and not table
            deviation = parameter[0].numel() ** -0.5 if matrix else 0.5
            parameter.normal_(0.0, deviation, generator=generator)
    return model.eval()


def save(model, folder, **options):
    """Saves a model with transformers and returns the folder."""
    model.save_pretrained(folder, **options)
    return folder


def numpy_of(tensor):
    """Converts a tensor to an array."""
    return np.asarray(tensor.detach().numpy())
