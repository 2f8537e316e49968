"""Torch parts of the quantizers that are trained by gradient; imported once training or encoding starts."""
