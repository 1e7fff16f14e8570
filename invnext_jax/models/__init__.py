"""Pure linen modules: arrays in, arrays out; plain fields, no config objects."""
