"""What generated variants call at run time. ``register`` makes variants of your own models known."""

from runtime.registration import RegistrationError, register, registered, unregister

__all__ = ["RegistrationError", "register", "registered", "unregister"]
