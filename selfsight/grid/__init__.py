"""A grid of pretrainings and evaluations: what is run, and what may be said about its results."""
