"""Methods of the weights stage: which weights stay."""
