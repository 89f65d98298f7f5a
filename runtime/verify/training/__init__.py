"""Numerical verification of the training variants: logits, losses and gradients against upstream, one sequence at a
time.
"""
