"""DAPO for vision-language models, as stages that hand Parquet files to each other."""

__version__ = "0.1.0"
