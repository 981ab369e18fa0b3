"""The frameworks' own gradient checkers, by their own names and signatures, answered by gradaudit.

Change one import line: ``from gradaudit.dropin.torch import gradcheck``. Steps and absolute tolerances are accepted and
not used; a relative tolerance is the smallest error that matters.
"""
