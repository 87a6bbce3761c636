"""The command line: reads arguments, prints, and turns errors into exit codes. Decides nothing about backups."""

from s3hashsync.cli.app import entry_point

__all__ = ["entry_point"]
