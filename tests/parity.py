"""PyTorch's side of the parity tests: transformers' own models with random weights, on disk.

torch and transformers are imported when a test asks for them: nothing else waits for them.
"""

import os

import numpy as np


def import_transformers():
    """The modules torch and transformers, which never ask a hub for anything here."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


def randomise(torch, model, seed=0):
    """Draws every parameter anew, norms and biases too, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            table = any(part in name for part in ("position", "token", "class_embed", "probe"))
            matrix = parameter.ndim > 1 and not table
            deviation = parameter[0].numel() ** -0.5 if matrix else 0.5
            parameter.normal_(0.0, deviation, generator=generator)
    return model.eval()


def saved(model, folder, **options):
    """Saves a model as transformers does; the folder."""
    model.save_pretrained(folder, **options)
    return folder


def numpy_of(tensor):
    """A tensor as an array."""
    return np.asarray(tensor.detach().numpy())
