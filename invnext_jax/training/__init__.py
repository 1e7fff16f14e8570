"""Training state, step, optimizer, device mesh and compilation."""
