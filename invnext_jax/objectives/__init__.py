"""Pure functions of arrays: masks, diffusion and losses."""
