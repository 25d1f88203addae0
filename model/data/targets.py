"""What a target is: an id of the vocabulary, or a negative number where nothing is to be predicted.

Whoever makes targets writes IGNORE_INDEX there; every loss ignores all negative ones alike, since others write -1.
"""

IGNORE_INDEX = -100  # torch's default
