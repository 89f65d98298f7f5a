"""Emitters: what was derived -> text. Formatting is black's."""
