"""The embedded procedural video world, and the training of its image teacher."""
