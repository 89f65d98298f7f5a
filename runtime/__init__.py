"""What generated variants call at run time. ``register`` makes variants of your own models known.

The names are imported at first use: the compiler imports `runtime.fingerprint`, which must cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.registration import RegistrationError, register, registered, unregister

__all__ = ["RegistrationError", "register", "registered", "unregister"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.registration"), name)
    globals()[name] = value
    return value
