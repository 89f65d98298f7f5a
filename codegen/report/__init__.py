"""One HTML page for reviewing a regeneration: what every variant makes of upstream, and what changed since a revision."""
