"""`python -m s3hashsync`."""

from s3hashsync.cli import entry_point

if __name__ == "__main__":
    entry_point()
