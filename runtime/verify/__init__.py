"""Numerical verification: tiny random models of upstream's families, and their variants, compared number by number."""
