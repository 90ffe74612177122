"""What build options are resolved to: device, arch, sizes, the targets' own options."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
import pytest
from weights_only import WeightsOnly, use

from gptoss_export import BuildOptions
from gptoss_export.artifact.programs import Sizes, default_widths
from gptoss_export.build_options import resolve, resolve_device
from gptoss_export.build_sizes import context_problems, resolve_sizes
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.compat.versions import SUPPORTED
from gptoss_export.errors import BuildError, GptOssExportError, UsageError
from gptoss_export.targets import TARGETS, options_class
from gptoss_export.targets.base_compiler import Availability, compiler


def sizes_of(
    max_batch: int, max_context: int, chunks: tuple[int, ...] | None, default_chunks: tuple[int, ...]
) -> tuple[Sizes, list[str]]:
    """Resolved with the default widths."""
    return resolve_sizes(max_batch, None, max_context, chunks, default_widths, default_chunks)


@pytest.mark.parametrize(
    ("gpu", "options", "expected"),
    [
        (None, {}, "cpu"),
        ("sm_90", {}, "cuda"),
        ("sm_90", {"device": "cpu"}, "cpu"),
        (None, {"device": "cuda"}, "cuda"),
        (None, {"arch": "sm_80"}, "cuda"),
        (None, {"arch": "sm_80,sm_90"}, "cuda"),
        ("sm_90", {"arch": "x86_64-AVX2"}, "cpu"),
        ("sm_90", {"arch": "x86_64-AVX2", "device": "cuda"}, "cuda"),  # refused later, as an arch
    ],
)
def test_device_follows_arch_then_machine(gpu: str | None, options: dict[str, Any], expected: object) -> None:
    assert resolve_device(WeightsOnly(gpu), BuildOptions(**options)) == expected


def test_device_that_the_target_does_not_build_for() -> None:
    class OnlyCuda(WeightsOnly):
        dtypes: ClassVar[dict[str, tuple[str, ...]]] = {"cuda": ("bfloat16",)}

    with pytest.raises(UsageError, match="--device cpu: target aoti builds for cuda"):
        resolve_device(OnlyCuda(), BuildOptions(device="cpu"))
    assert resolve_device(OnlyCuda(), BuildOptions()) == "cuda"


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("sm_99", "--arch sm_99: aoti compiles here for x86_64-AVX2, sm_80, sm_90"),
        ("sm_90,x86_64-AVX2", "--arch sm_90,x86_64-AVX2: found archs of several devices, expected those of one"),
    ],
)
def test_archs_that_no_device_has(arch: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_device(WeightsOnly(), BuildOptions(arch=arch))


def test_an_arch_of_a_device_that_is_not_ready_says_why() -> None:
    class NotReady(WeightsOnly):
        def available(self, device: str) -> Availability:
            return Availability(device == "cpu", "triton: not installed", "pip install it")

    with pytest.raises(UsageError, match="nothing is compiled here for cuda: triton: not installed; pip install it"):
        resolve_device(NotReady(gpu_archs=()), BuildOptions(arch="sm_90"))


def test_spaces_between_archs_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Many(WeightsOnly):
        def compiles_many_archs(self, device: str) -> bool:
            return True

    use(monkeypatch, Many())
    _, settings, _ = resolve(BuildOptions(arch="sm_90, sm_80 ,sm_90"))
    assert settings.device == "cuda" and settings.archs == ("sm_90", "sm_80")


@pytest.mark.parametrize(
    ("target", "package"), [("aoti", "torch"), ("aoti", "triton"), ("onnx", "torch"), ("tensorrt", "triton")]
)
def test_other_versions_of_torch_and_triton_are_refused(
    monkeypatch: pytest.MonkeyPatch, target: str, package: str
) -> None:
    monkeypatch.setitem(SUPPORTED, package, ("9.9",))
    available = compiler(target).available("cuda")
    assert not available.ready and f"{package}: found " in available.detail and "expected 9.9" in available.detail


@pytest.mark.parametrize("gpu", [None, "sm_90"])
def test_device_of_the_default_target_follows_the_machine(monkeypatch: pytest.MonkeyPatch, gpu: str | None) -> None:
    monkeypatch.setattr("gptoss_export.targets.aoti.compile.current_gpu_arch", lambda: gpu)
    assert resolve_device(compiler("aoti"), BuildOptions()) == ("cpu" if gpu is None else "cuda")


def test_onnx_needs_no_gpu_and_is_built_for_cpu_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device(compiler("onnx"), BuildOptions("onnx")) == "cpu"


def test_default_target_is_the_first_of_the_registry() -> None:
    assert BuildOptions().target == TARGETS[0]


@pytest.mark.parametrize(("device", "chunks"), [("cpu", (128,)), ("cuda", (128, 512, 1024, 2048, 4096))])
def test_default_chunks_suit_the_device(monkeypatch: pytest.MonkeyPatch, device: str, chunks: tuple[int, ...]) -> None:
    use(monkeypatch, WeightsOnly("sm_90"))
    _, settings, _ = resolve(BuildOptions(device=device))
    assert settings.sizes == Sizes((1,), 4096, chunks)


def test_sizes() -> None:
    assert sizes_of(1, 100, None, (128, 2048)) == (Sizes((1,), 100, (100,)), [])  # shortened to the context
    assert sizes_of(1, 1024, None, (128, 2048)) == (Sizes((1,), 1024, (128, 1024)), [])
    assert sizes_of(1, 64, (64, 16, 64), (128,)) == (Sizes((1,), 64, (16, 64)), [])


@pytest.mark.parametrize(
    ("max_batch", "widths", "expected"),
    [
        (1, None, (1,)),
        (2, None, (1, 2)),
        (5, None, (1, 2, 4, 5)),
        (64, None, (1, 2, 4, 8, 16, 32, 64)),
        (8, (8,), (8,)),
        (8, (8, 3, 3), (3, 8)),
    ],
)
def test_widths(max_batch: int, widths: tuple[int, ...] | None, expected: tuple[int, ...]) -> None:
    sizes, problems = resolve_sizes(max_batch, widths, 64, (16,), default_widths, (16,))
    assert problems == [] and sizes.widths == expected and sizes.max_batch == max_batch
    wanted = {sequences: sizes.width_for(sequences) for sequences in range(1, max_batch + 1)}
    assert all(width >= sequences for sequences, width in wanted.items())
    assert all(other < sequences for sequences, width in wanted.items() for other in expected if other < width)


@pytest.mark.parametrize(
    ("max_batch", "widths", "message"),
    [
        (4, (1, 2), "--widths 1,2: expected --max-batch (4) as the largest"),
        (1, (1, 2), "--widths 1,2: expected --max-batch (1) as the largest"),
        (2, (), "--widths none: expected --max-batch (2) as the largest"),
        (2, (0, 2), "--widths 0: expected 1 or more"),
        (2, ("2",), "--widths '2': expected a whole number"),
    ],
)
def test_widths_that_cannot_be_built(max_batch: int, widths: tuple[Any, ...], message: str) -> None:
    assert resolve_sizes(max_batch, widths, 64, (16,), default_widths, (16,))[1] == [message]


def test_a_model_of_onnx_has_one_width() -> None:
    options = {"target": "onnx", "device": "cpu", "max_batch": 4}
    assert resolve(BuildOptions(**options))[1].sizes.widths == (4,)
    with pytest.raises(UsageError, match=r"--widths 1,4: onnx computes every slot in each step; leave it out"):
        resolve(BuildOptions(**options, widths=(1, 4)))


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ((0, 64, None), ["--max-batch 0: expected 1 or more"]),
        ((1, 0, None), ["--max-context 0: expected 1 or more"]),
        ((1, 64, (0,)), ["--prefill-chunk 0: expected 1 or more"]),
        ((1, 64, ()), ["--prefill-chunk: found none, expected one or more"]),
        ((1, 64, (65,)), ["--prefill-chunk 65: expected at most --max-context (64)"]),
        ((-1, 64, (16, 65, -2)), 3),
    ],
)
def test_wrong_sizes(arguments: tuple[Any, ...], problems: list[str] | int) -> None:
    max_batch, max_context, chunks = arguments
    _, found = sizes_of(max_batch, max_context, chunks, (128,))
    assert (len(found) if isinstance(problems, int) else found) == problems


def test_all_problems_are_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, WeightsOnly())
    with pytest.raises(UsageError) as raised:
        resolve(BuildOptions(device="cuda", dtype="float32", max_batch=0, max_context=8, prefill_chunks=(9,)))
    for text in ("--dtype float32", "--max-batch 0", "--prefill-chunk 9"):
        assert text in str(raised.value)


@pytest.mark.parametrize("jobs", [0, -1, "2", 1.5])
def test_jobs_that_are_no_number_of_processes(jobs: Any) -> None:
    with pytest.raises(UsageError, match=r"--jobs .*: expected 1 or more"):
        resolve(BuildOptions(device="cpu", jobs=jobs))


def test_an_unknown_format_of_the_experts() -> None:
    with pytest.raises(UsageError, match=r"--experts 'fp8': expected mxfp4, nf4 or bf16"):
        resolve(BuildOptions(device="cpu", experts="fp8"))


def test_every_default_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, WeightsOnly("sm_90"))
    _, settings, choosers = resolve(BuildOptions(stop_tokens=(3,)))
    assert settings.to_json() == {
        "target": "aoti",
        "device": "cuda",
        "arch": "sm_90",
        "dtype": "bfloat16",
        "max_batch": 1,
        "widths": [1],
        "max_context": 4096,
        "tensor_parallel": 1,
        "expert_parallel": False,
        "prefill_chunks": [128, 512, 1024, 2048, 4096],
        "stop_tokens": [3],
        "tuned_configs": [],
        "adapter": None,
        "experts": None,
        "cpu_isa": None,
    }
    assert choosers.keys() == {"sm_90"}


def test_arch_without_a_device_to_build_for(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, WeightsOnly(gpu_archs=("sm_80", "sm_86")))
    with pytest.raises(UsageError, match=r"no cuda device to build for; choose one of sm_80, sm_86"):
        resolve(BuildOptions(device="cuda"))
    with pytest.raises(BuildError, match=r"--arch sm_70: aoti compiles here for sm_80, sm_86"):
        resolve(BuildOptions(device="cuda", arch="sm_70"))
    with pytest.raises(BuildError, match=r"one arch at a time"):
        resolve(BuildOptions(device="cuda", arch="sm_80,sm_86"))
    _, settings, _ = resolve(BuildOptions(device="cuda", arch="sm_86"))
    assert settings.archs == ("sm_86",)


def test_target_that_cannot_be_built_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(WeightsOnly):
        def available(self, device: str) -> Availability:
            return Availability(False, "no compiler", "install one")

    use(monkeypatch, Missing())
    with pytest.raises(BuildError, match="aoti for cpu cannot be built here: no compiler; install one"):
        resolve(BuildOptions())


def test_tensorrt_alone_without_a_gpu_says_what_it_builds_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("gptoss_export.targets.tensorrt.compile.current_gpu_arch", lambda: None)
    with pytest.raises(GptOssExportError) as raised:
        resolve(BuildOptions("tensorrt"))
    known = compiler("tensorrt").archs("cuda")
    assert {"sm_80", "sm_86", "sm_89"} <= set(known)
    assert f"choose one of {', '.join(known)}" in str(raised.value)


@pytest.mark.parametrize("target", TARGETS)
def test_options_of_another_target_are_refused(target: str) -> None:
    @dataclasses.dataclass(frozen=True)
    class Other:
        pass

    with pytest.raises(UsageError, match=rf"found .*Other, expected .*, the options of target {target}"):
        resolve(BuildOptions(target, target_options=Other()))


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_compiled_with_the_options_that_it_declares(target: str) -> None:
    assert compiler(target).options_class is options_class(target)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((4097, 64, None), "--max-batch 4097: expected at most 4096"),
        ((10**6, 64, None), "--max-batch 1000000: expected at most 4096"),
        ((2**63, 64, None), f"--max-batch {2**63}: expected at most 4096"),
        ((True, 64, None), "--max-batch True: expected a whole number"),
        ((1.0, 64, None), "--max-batch 1.0: expected a whole number"),
        ((1, "64", None), "--max-context '64': expected a whole number"),
        ((1, None, None), "--max-context None: expected a whole number"),
        ((1, 64, (True,)), "--prefill-chunk True: expected a whole number"),
        ((1, 64, (8, 1.5)), "--prefill-chunk 1.5: expected a whole number"),
        ((1, 64, "16"), "--prefill-chunk '16': expected a whole number"),
        ((1, 64, ()), "--prefill-chunk: found none, expected one or more"),
    ],
)
def test_sizes_that_are_not_believed(sizes: tuple[Any, Any, Any], message: str) -> None:
    assert sizes_of(*sizes, (128,))[1] == [message]


def test_sizes_of_other_libraries_and_one_chunk() -> None:
    sizes, problems = sizes_of(np.int64(4096), np.int32(64), np.array([8, 4]), (128,))  # type: ignore[arg-type]
    assert problems == [] and sizes == Sizes(default_widths(4096), 64, (4, 8)) and type(sizes.max_batch) is int
    assert sizes_of(1, 64, 8, (128,)) == (Sizes((1,), 64, (8,)), [])  # type: ignore[arg-type]


def test_caches_that_no_machine_holds() -> None:
    """The shape of the 20b: 12 full layers with 8 heads of 64, keys and values, two bytes: 24,576 bytes a token."""
    config = PRESETS["20b"]
    assert context_problems(Sizes((2048,), 131072, (128,)), config) == []
    (problem,) = context_problems(Sizes((4096,), 131072, (128,)), config)
    assert problem == (
        "--max-batch 4096 with --max-context 131072: the keys and values take 13 TB or more; expected at most 9 TB"
    )
