"""Recognizers: upstream text -> facts with evidence, or a refusal. One file per role."""
