"""The process group of the ranks: what is left of it when the ranks fail while it is made."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from gptoss_export.errors import RunError
from gptoss_export.ranks import torch_group
from gptoss_export.ranks.torch_group import TorchGroup, check_no_other_group


def test_a_group_that_was_left_while_it_was_made_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that cannot start is heard of by another thread, which ends the membership."""
    group = TorchGroup(0, 1, "cpu", None, None)
    made = torch_group.gloo_group

    def made_too_late(*given: Any) -> Any:
        found = made(*given)
        thread = threading.Thread(target=group.leave)
        thread.start()
        thread.join()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(torch_group, "gloo_group", made_too_late)
        with pytest.raises(RunError, match="the ranks have ended in the meantime"):
            group.join()
    _another_group_can_be_joined()


def test_a_group_can_be_left_twice() -> None:
    group = TorchGroup(0, 1, "cpu", None, None)
    group.join()
    with pytest.raises(RunError, match="loaded an artifact of several ranks already"):
        check_no_other_group()
    group.leave()
    group.leave()
    _another_group_can_be_joined()


def _another_group_can_be_joined() -> None:
    check_no_other_group()
    group = TorchGroup(0, 1, "cpu", None, None)
    group.join()
    group.leave()
    check_no_other_group()
