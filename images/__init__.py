"""Picture formats: magic bytes, completeness, conversion."""
