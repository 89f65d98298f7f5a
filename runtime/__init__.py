"""What the generated variants and their users call at run time: ``qeff`` (inference), ``training``, ``verify``."""
