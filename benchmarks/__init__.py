"""Comparisons of jaxsep with other implementations."""
