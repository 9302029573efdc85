"""Arrays on disk: checkpoints of our own runs and files of other people.

Rooms:
  run: what a training run saves and continues from (the one module that knows Orbax).
  fingerprints: checksums of parameter trees.
  foreign: readers and writers of other people's files, and the tables that map their names to ours.
"""
