"""The runtime's tensors as torch has them, for a process that has imported torch and for targets that need it."""
