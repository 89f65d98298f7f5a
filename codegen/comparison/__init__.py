"""Two texts of one method side by side: which token became which, which rule made it, which lines belong together."""
