"""Rewrite rules, one per file, each named after the upstream pattern it acts on. No rule names a family."""
