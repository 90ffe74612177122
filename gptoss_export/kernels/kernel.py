"""A kernel: what a package offers for an op, and how it gets its launch config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..compat.pytorch import triton_op_body
from ..model.expert_weights import is_mxfp4
from ..model.mxfp4 import interleave
from ..model.ops import Arguments, Op
from .launch_config import ConfigSpace, LaunchConfig, flatten
from .tuned_configs import TunedConfigs


@dataclass
class ConfigChooser:
    """Chooses launch configs for one arch and records each choice.

    tuned   the tuned configs to look in, the first that serves a call wins; those of other archs are ignored
    chosen  the calls so far and the tuned configs that each one used, None for the kernel's own guess
    """

    arch: str
    tuned: Sequence[TunedConfigs] = ()
    chosen: dict[str, TunedConfigs | None] = field(default_factory=dict)

    def choose(self, space: ConfigSpace) -> LaunchConfig:
        """The launch config of a call. Raises UsageError where tuned configs do not belong to the kernel."""
        for configs in self.tuned:
            if configs.arch == self.arch and (found := configs.find(space)) is not None:
                self.chosen[str(space)] = configs
                return found
        self.chosen[str(space)] = None
        return space.default

    @property
    def used(self) -> list[TunedConfigs]:
        """The tuned configs that served a call, in the order in which they are looked in."""
        return [configs for configs in self.tuned if any(configs is used for used in self.chosen.values())]


@dataclass(frozen=True)
class Kernel:
    """The kernels of one op.

    op            gptoss_triton::<name>, a torch.library.triton_op that takes the arguments of the gptoss:: op by name
    config_space  arguments, which may be fake tensors, and arch to the launch configs that the call can have. With it
                  the op takes `config` and `arch` as well
    covers        arguments to whether the kernels are made for the call. Other calls are computed by the op's
                  reference, whose smaller ops may have kernels of their own. None: all calls
    interleaved   the matrices, such as down, whose weights the kernels take with interleaved codes (model/mxfp4.py) if
                  they are MXFP4
    """

    op: Callable[..., Any]
    config_space: Callable[[Arguments, str], ConfigSpace] | None = None
    covers: Callable[[Arguments], bool] | None = None
    interleaved: tuple[str, ...] = ()

    def given(self, arguments: Arguments) -> dict[str, Any]:
        """The arguments of a call of the op as the kernels take them. Loading a runner does the same with weights."""
        names = [f"{matrix}_weight" for matrix in self.interleaved if is_mxfp4(arguments[f"{matrix}_scales"])]
        return {**arguments, **{name: interleave(arguments[name]) for name in names}}

    def bind(self, op: Op, chooser: ConfigChooser, as_launches: bool = False) -> Callable[..., Any]:
        """The implementation of `op` with the launch configs that `chooser` chooses.

        as_launches: the traced graph shows each kernel launch in place of one node for the op.
        """
        function = triton_op_body(self.op) if as_launches else self.op

        def implementation(*args: Any, **kwargs: Any) -> Any:
            arguments = op.arguments(args, kwargs)
            if self.covers is not None and not self.covers(arguments):
                return op.reference(**arguments)
            if self.config_space is None:
                return function(**arguments)
            config = chooser.choose(self.config_space(arguments, chooser.arch))
            return function(**arguments, config=flatten(config), arch=chooser.arch)

        return implementation
