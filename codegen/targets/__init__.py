"""The targets: each is an ordered pipeline of rules, visible as a list, and the names its output uses."""
