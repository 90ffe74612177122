"""libtorch, torch's C++ library, called through its C interface with ctypes. Imports nothing of torch's Python, which
takes seconds, and compiles nothing."""
