"""Grids of pretrainings and evaluations: their cells, and the processes that run them."""
