"""Methods of the prefill stage: which earlier keys a query of the prompt may see."""
