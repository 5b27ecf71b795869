"""What crosses between processes: values, exceptions and models as bytes."""
