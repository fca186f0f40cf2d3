"""Methods of the decode stage: which cached keys a query reads."""
