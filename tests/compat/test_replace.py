"""Names of torch and Triton are replaced for a while, and never silently where they do not exist."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch

from gptoss_export.compat import cpu_instructions, fake_gpu
from gptoss_export.compat.replace import add, replace
from gptoss_export.errors import CompatibilityError


class Base:
    inherited = "theirs"


class Owner(Base):
    own = "mine"


def test_names_are_restored() -> None:
    with ExitStack() as stack:
        replace(stack, Owner, "own", 1)
        replace(stack, Owner, "own", 2)
        replace(stack, Owner, "inherited", 3)
        assert (Owner.own, Owner.inherited, Base.inherited) == (2, 3, "theirs")
    assert (Owner.own, Owner.inherited) == ("mine", "theirs")
    assert "inherited" not in vars(Owner)


def test_names_are_restored_after_an_error() -> None:
    owner = SimpleNamespace(name=1)
    with pytest.raises(ZeroDivisionError), ExitStack() as stack:
        replace(stack, owner, "name", 2)
        raise ZeroDivisionError
    assert owner.name == 1


def test_a_missing_name_is_refused_and_not_set() -> None:
    with ExitStack() as stack:
        with pytest.raises(CompatibilityError, match="Owner has no attribute renamed; install a supported version"):
            replace(stack, Owner, "renamed", 1)
        assert not hasattr(Owner, "renamed")


def test_add_takes_a_missing_name_away_again() -> None:
    owner = SimpleNamespace(there=1)
    with ExitStack() as stack:
        add(stack, owner, "there", 2)
        add(stack, owner, "missing", 3)
        assert vars(owner) == {"there": 2, "missing": 3}
    assert vars(owner) == {"there": 1}


def test_a_fake_gpu_needs_every_name_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And restores what it had replaced before it found one missing."""
    available, properties = torch.cuda.is_available, torch.cuda.get_device_properties
    monkeypatch.delattr(torch.cuda, "_exchange_device")
    gpu = fake_gpu.GpuProperties("a GPU", 9, 0, 132, 1, 1, 2048)
    with (
        pytest.raises(CompatibilityError, match=r"torch\.cuda has no attribute _exchange_device"),
        fake_gpu.fake_gpu(gpu),
    ):
        pass
    assert torch.cuda.is_available is available and torch.cuda.get_device_properties is properties


def test_cpu_instructions_need_inductors_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpu_vec_isa

    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.delattr(cpu_vec_isa, "valid_vec_isa_list")
    with (
        pytest.raises(CompatibilityError, match="cpu_vec_isa has no attribute valid_vec_isa_list"),
        cpu_instructions.cpu_instructions("AVX2"),
    ):
        pass


def test_cpu_instructions_limit_vectors_and_gccs_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, cpu_vec_isa

    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(cpp_builder, "_get_optimization_cflags", lambda *_, **__: (["O3", "march=native"], []))
    expected = {"DEFAULT": ("x86-64", []), "AVX2": ("x86-64-v3", ["VecAVX2"]), "AVX512": ("x86-64-v4", ["VecAVX512"])}
    for level, (march, vectors) in expected.items():
        with cpu_instructions.cpu_instructions(level):
            assert cpp_builder._get_optimization_cflags("g++") == (["O3", f"march={march}"], [])
            assert [type(isa).__name__ for isa in cpu_vec_isa.valid_vec_isa_list()] == vectors
    assert cpp_builder._get_optimization_cflags("g++") == (["O3", "march=native"], [])


def test_cpu_instructions_leave_out_those_beside_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor adds AVX512_BF16 where the building machine has it, for the first program of a process."""
    from torch._inductor import cpu_vec_isa

    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(cpu_vec_isa.VecAVX512, "_is_avx512_bf16_supported", True)
    assert "-mavx512bf16" in cpu_vec_isa.VecAVX512().build_arch_flags()
    with cpu_instructions.cpu_instructions("AVX512"):
        (vectors,) = cpu_vec_isa.valid_vec_isa_list()
        assert "-mavx512f" in vectors.build_arch_flags() and "bf16" not in vectors.build_arch_flags()
