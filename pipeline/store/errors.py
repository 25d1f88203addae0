"""Errors that are not bugs of this program; the command line prints each as one line and exits with code 2.

ValueError           a config, file, table or argument that a user gave
OSError
  DiskFull           no space left below the data folder
RuntimeError
  CorruptShard       a finished output that no longer matches its record
  SourceUnavailable  a package, archive or server that could not be fetched
  Terminated         SIGTERM or "terminate" in the UI, after finished work was saved
"""


class DiskFull(OSError):
    """No space left. Finished work is kept and the next run continues from it."""


class CorruptShard(RuntimeError):
    """A finished output that no longer matches its record."""


class SourceUnavailable(RuntimeError):
    """A package, archive or server that could not be fetched."""


class Terminated(RuntimeError):
    """A run that was asked to stop and has saved its state."""
