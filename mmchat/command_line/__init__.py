"""What all programs share: argument parsing, common options, error messages, quiet libraries."""
