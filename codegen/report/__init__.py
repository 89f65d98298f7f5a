"""One HTML page for reviewing a regeneration: each variant beside upstream, and what changed since a revision."""
