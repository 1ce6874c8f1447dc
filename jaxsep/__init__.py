"""Blind separation of the instruments in a music recording, as differentiable JAX modules."""
