"""CPU levels: which instructions compiled code uses, and which machines run it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest
import torch
from aoti_packages import compile_package, libraries_of, problems_of

from gptoss_export import BuildOptions, build, load
from gptoss_export.artifact.manifest import Manifest, load_manifest, save_manifest
from gptoss_export.build_options import resolve
from gptoss_export.errors import ArtifactError, UsageError
from gptoss_export.targets.aoti import cpu_isa
from gptoss_export.targets.aoti.compile import COMPILER
from gptoss_export.targets.aoti.load import LOADER
from gptoss_export.targets.aoti.options import Options
from gptoss_export.targets.aoti.package import package_name, runnable_arch

X86_AVX2 = cpu_isa.runs("x86_64-AVX2", cpu_isa.current_arch())


def with_archs(artifact: Path, *archs: str) -> Manifest:
    """The manifest of the artifact, as if it had code for these archs."""
    manifest = load_manifest(artifact)
    code = manifest.files[package_name(manifest.arch, manifest.model)]
    files = {name: spec for name, spec in manifest.files.items() if not name.endswith(".pt2")}
    files |= {package_name(arch, manifest.model): code for arch in archs}
    return dataclasses.replace(manifest, archs=archs, files=files)


@pytest.mark.parametrize(
    ("machine", "runs"),
    [
        ("x86_64-DEFAULT", {"x86_64-DEFAULT"}),
        ("x86_64-AVX2", {"x86_64-DEFAULT", "x86_64-AVX2"}),
        ("x86_64-AVX512", {"x86_64-DEFAULT", "x86_64-AVX2", "x86_64-AVX512"}),
        ("aarch64-DEFAULT", {"aarch64-DEFAULT"}),
        ("aarch64-SVE256", {"aarch64-SVE256"}),
    ],
)
def test_a_lesser_cpu_refuses_code_of_a_higher_level(
    uncompiled: Path, monkeypatch: pytest.MonkeyPatch, machine: str, runs: set[str]
) -> None:
    monkeypatch.setattr(cpu_isa, "current_arch", lambda: machine)
    archs = {"x86_64-DEFAULT", "x86_64-AVX2", "x86_64-AVX512", "aarch64-DEFAULT", "aarch64-SVE256", "other-AVX2"}
    for arch in archs:
        problems = LOADER.problems(with_archs(uncompiled, arch), uncompiled)
        if arch in runs:
            assert problems == []
        else:
            assert problems == [
                f"arch: artifact has code for {arch}, this machine is {machine}; build with --arch {machine}"
            ]


def test_load_refuses_it(uncompiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_manifest(with_archs(uncompiled, "x86_64-AVX512"), tmp_path)
    monkeypatch.setattr(cpu_isa, "current_arch", lambda: "x86_64-AVX2")
    with pytest.raises(ArtifactError, match="artifact has code for x86_64-AVX512, this machine is x86_64-AVX2"):
        load(tmp_path)


def test_the_highest_level_that_runs_is_chosen(uncompiled: Path) -> None:
    manifest = with_archs(uncompiled, "x86_64-DEFAULT", "x86_64-AVX512", "x86_64-AVX2")
    for machine, chosen in {"AVX512": "AVX512", "AVX2": "AVX2", "DEFAULT": "DEFAULT"}.items():
        assert runnable_arch(manifest, f"x86_64-{machine}") == f"x86_64-{chosen}"
    assert runnable_arch(manifest, "aarch64-DEFAULT") is None and runnable_arch(manifest, None) is None


def test_archs_that_a_machine_builds_for_are_those_that_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, archs in {
        "x86_64-AVX2": ("x86_64-AVX2", "x86_64-DEFAULT"),
        "x86_64-DEFAULT": ("x86_64-DEFAULT",),
        "aarch64-SVE256": ("aarch64-SVE256",),
    }.items():
        monkeypatch.setattr(cpu_isa, "current_arch", lambda machine=machine: machine)
        assert COMPILER.archs("cpu") == archs


def test_the_option_names_an_arch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_isa, "current_arch", lambda: "x86_64-AVX512")
    assert COMPILER.default_archs("cpu", Options()) == ("x86_64-AVX512",)
    for name, arch in {"portable": "x86_64-DEFAULT", "avx2": "x86_64-AVX2", "avx512": "x86_64-AVX512"}.items():
        assert COMPILER.default_archs("cpu", Options(cpu_isa=name)) == (arch,)
        assert COMPILER.option_problems("cpu", None, Options(cpu_isa=name)) == []
    monkeypatch.setattr(cpu_isa, "current_arch", lambda: "aarch64-DEFAULT")
    (problem,) = COMPILER.option_problems("cpu", None, Options(cpu_isa="avx2"))
    assert "--cpu-isa avx2: is for x86_64, this machine is aarch64" in problem


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"device": "cuda", "arch": "sm_90"}])
def test_the_option_is_for_a_cpu(checkpoints: dict[str, Path], tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="--cpu-isa avx2: is for --device cpu, found --device cuda"):
        build(checkpoints["hf"], tmp_path / "out", BuildOptions("aoti", target_options=Options("avx2"), **options))
    assert list(tmp_path.iterdir()) == []


def test_the_option_and_an_arch_have_to_agree(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    options = BuildOptions("aoti", "cpu", arch="x86_64-AVX512", target_options=Options("avx2"))
    with pytest.raises(UsageError, match="--cpu-isa avx2: is arch x86_64-AVX2, found --arch x86_64-AVX512"):
        build(checkpoints["hf"], tmp_path / "out", options)


@pytest.mark.skipif(not X86_AVX2, reason="a CPU without AVX2")
def test_both_may_name_the_same() -> None:
    """The manifest stores both, and the command that builds an artifact again gives both."""
    _, settings, _ = resolve(BuildOptions("aoti", target_options=Options("avx2")))
    stored = settings.to_json()
    _, again, _ = resolve(BuildOptions("aoti", arch=stored["arch"], target_options=Options(stored["cpu_isa"])))
    assert again == settings and settings.archs == ("x86_64-AVX2",)


@pytest.mark.skipif(not X86_AVX2, reason="a CPU without AVX2")
def test_portable_code_uses_no_later_registers(tmp_path: Path) -> None:
    """Whatever the machine has."""
    package = compile_package(tmp_path / "a", "cpu", "x86_64-DEFAULT", torch.float32)
    (library,) = libraries_of(package, tmp_path).values()
    listing = subprocess.run(["objdump", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "%xmm" in listing and not re.search(r"%[yz]mm", listing)
    assert problems_of(package) == []
