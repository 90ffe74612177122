"""Temporary: moved to base_compiler.py and base_loader.py."""


def __getattr__(name):
    from . import base_compiler, base_loader
    import gptoss_export.targets as t

    for m in (base_loader,) if hasattr(base_loader, name) else (t,) if hasattr(t, name) else (base_compiler,):
        return getattr(m, name)
