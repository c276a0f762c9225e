"""What is wrong with an installation and a machine, and what to do about it.

Every check imports what it needs when it runs, so that one broken package costs one line and not the others.
"""
