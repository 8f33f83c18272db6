"""What all programs share: argument parsing, error reporting and quiet libraries."""
