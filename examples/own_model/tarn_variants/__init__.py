"""Variants of this project's own models, derived by regraft. Do not edit.

``runtime.register`` with this package's name makes them known. See MANIFEST.toml and COVERAGE.md.
"""
