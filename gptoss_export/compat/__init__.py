"""Every private name of torch and Triton that the project calls or replaces, and the versions that it was tested with.

Each entry says what breaks without it, since when the name exists, and when the entry can go. Replacing a name that
does not exist raises CompatibilityError."""
