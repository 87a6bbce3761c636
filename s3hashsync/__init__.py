"""s3hashsync: declarative, content-addressed backup to S3 with its index in DynamoDB."""

__version__ = "0.1.0"
