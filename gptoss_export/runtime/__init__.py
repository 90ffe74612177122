"""Running an artifact. Nothing here builds, and nothing here knows a target."""
