"""DAPO for vision-language models, as stages that hand over Parquet files."""

__version__ = "0.1.0"
