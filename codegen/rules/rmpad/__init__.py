"""Rules of the training target."""
