"""Methods of the gate stage: which earlier tokens a token drops, for good, by what it learned."""
