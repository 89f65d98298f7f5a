"""Models outside of upstream: a folder with ``modeling_<name>.py``, compiled into a package of its owner's."""
