"""Pure functions: masks, diffusion, losses. No modules, no config."""
