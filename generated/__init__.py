"""Variants that regraft derived from upstream; see MANIFEST.toml and COVERAGE.md. Do not edit."""
