"""The compiler: reads upstream's text, derives variants, writes ``generated/``. Imports no torch, no transformers."""
