"""Methods of the eviction stage: which cached keys stay, for good."""
