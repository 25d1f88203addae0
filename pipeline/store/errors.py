"""What can go wrong that is not our own mistake; the command line shows each as one line and exit code 2.

ValueError           a config, file, table or argument that a user gave
OSError
  DiskFull           no room left under the data folder
RuntimeError
  CorruptShard       a finished output that no longer reads back as its record says
  SourceUnavailable  a package, archive or server that could not be fetched
  Terminated         SIGTERM or a "terminate" in the UI, after what was done had been saved
"""


class DiskFull(OSError):
    """No room left; what was finished is kept and the next run goes on from it."""


class CorruptShard(RuntimeError):
    """A finished output that no longer reads back as its record says."""


class SourceUnavailable(RuntimeError):
    """A package, archive or server that could not be fetched."""


class Terminated(RuntimeError):
    """A run that was asked to stop and has saved what it had."""
