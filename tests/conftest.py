"""How do property tests run?  Without a deadline for one example: a busy machine is no bug."""

from hypothesis import settings

settings.register_profile("berth", settings(), deadline=None)  # on top of what hypothesis chose, by CI for one
settings.load_profile("berth")
