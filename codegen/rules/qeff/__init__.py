"""Rules of the inference target: fixed key/value buffers addressed by ``position_ids``, boolean masks, one graph."""
