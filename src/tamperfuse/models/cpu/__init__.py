"""CPU kernels, each beside the plain path that it replaces."""
