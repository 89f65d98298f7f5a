"""The compiler: reads upstream's text, derives variants, writes ``generated/``. Imports neither torch nor transformers."""
