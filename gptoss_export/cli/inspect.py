"""gptoss-export inspect"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..shown_text import size
from .errors import reports_errors
from .pages import check_page, html_option, terminal_table, write
from .params import artifact_argument, json_option, trust_option, trusted
from .plain import say
from .tables import print_json, print_tables, readable

if TYPE_CHECKING:
    from ..artifact.calls import TensorSpec
    from ..artifact.manifest import Manifest
    from ..artifact.programs import Sizes
    from ..pictures.inspect_page import InspectTables
    from ..pictures.page import PageTable
    from ..targets.base_loader import Table

_GUESSES = "the kernels' own guesses"
_SHOWN_DIGITS = 16  # of a sha256


@click.command("inspect")
@artifact_argument
@trust_option
@html_option
@json_option
@reports_errors
def command(artifact: Path, trust: tuple[Path, ...], html: Path | None, as_json: bool) -> None:
    """Show what is in ARTIFACT.

    Reads its manifest. Opens no compiled code and no weights, and compares no hashes.
    """
    from ..artifact.files import check_sizes
    from ..artifact.keys import read_trusted_keys
    from ..artifact.manifest import load_manifest
    from ..artifact.signature import check_signature, has_signature

    check_page(html, artifact)
    keys, signers = read_trusted_keys(trusted(trust)), []

    def check(data: bytes) -> None:
        if keys is not None:
            signers.append(str(check_signature(artifact, data, keys).path))

    manifest = load_manifest(artifact, check)
    signature = {"signed": has_signature(artifact), "trusted_key": signers[0] if signers else None}
    check_sizes(manifest.files, artifact)
    tables = _target_tables(manifest, artifact)
    if as_json:
        rows = {table.title: [dict(zip(table.headings, row, strict=True)) for row in table.rows] for table in tables}
        print_json(manifest.to_json() | {"signature": signature, "tables": rows})
    if html is None and as_json:
        return
    found = all_tables(manifest, _signature(signature), tables)
    if not as_json:
        shown = (found.about, found.options, found.programs, *found.of_target, found.files)
        print_tables(map(terminal_table, shown))
    if html is not None:
        from ..pictures.inspect_page import inspect_page

        write(inspect_page(str(artifact), manifest, found), html)


def all_tables(manifest: Manifest, signature: str, of_target: Iterable[Table]) -> InspectTables:
    """What the terminal shows, in order. signature: what is known of it."""
    from ..pictures.inspect_page import InspectTables
    from ..pictures.page import PageTable

    return InspectTables(
        about=_about(manifest, signature),
        options=_settings(manifest),
        programs=_programs(manifest),
        of_target=tuple(PageTable(table.title, table.headings, tuple(table.rows)) for table in of_target),
        files=_files(manifest),
    )


def _target_tables(manifest: Manifest, folder: Path) -> list[Table]:
    """The tables of the artifact's target; none where this version has no such target or lacks a package for it."""
    from ..errors import UsageError
    from ..targets.base_loader import loader

    try:
        target = loader(manifest.target)
    except UsageError as error:
        say(f"note: the tables of target {manifest.target} are left out: {error}", err=True)
        return []
    return target.tables(manifest, folder)


def _signature(found: dict[str, Any]) -> str:
    if found["trusted_key"] is not None:
        return f"of {found['trusted_key']}, over the manifest; the files were not compared with it"
    return "there is one, not checked; --trust PUBLICKEY checks it" if found["signed"] else "none"


def _about(manifest: Manifest, signature: str) -> PageTable:
    from ..pictures.page import PageTable

    model, origin = manifest.model, manifest.provenance
    tuned = [f"{arch}: {'; '.join(labels) or _GUESSES}" for arch, labels in origin.tuned_configs.items()]
    rows = {
        "target": f"{manifest.target} for {manifest.device} ({manifest.arch}), {manifest.dtype}",
        "built from": manifest.source,
        "built on": f"{origin.system} {origin.machine}, {origin.gpu or 'no GPU'}",
        "built with": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "tuned configs": "\n".join(tuned) or "none of the project's kernels",
        "model": f"{model.num_hidden_layers} layers, hidden {model.hidden_size}, {model.num_attention_heads} heads "
        f"({model.num_key_value_heads} kv) of {model.head_dim}, {model.num_local_experts} experts "
        f"(top {model.num_experts_per_tok}), vocabulary {model.vocab_size}",
        "window": f"{model.sliding_window} on {model.layer_types.count('sliding_attention')} layers",
        **_use(manifest.sizes),
        "stop tokens": readable(manifest.stop_tokens),
        "signature": signature,
    }
    return PageTable("artifact", ("", ""), tuple(rows.items()))


def _use(sizes: Sizes) -> dict[str, str]:
    """What the artifact takes at a time."""
    training = sizes.training
    if training is not None:
        factors = f"LoRA of rank {training.rank} on {', '.join(training.targets)}"
        return {"training step": f"{training.tokens} tokens, {factors}"}
    return {
        "sequences": f"{sizes.max_batch} of up to {sizes.max_context} tokens",
        "ranks": str(sizes.ranks),
        "adapters": _adapters(sizes),
        "widths of a step": ", ".join(map(str, sizes.widths)),
    }


def _adapters(sizes: Sizes) -> str:
    return f"{sizes.adapter_slots} at a time, of rank {sizes.adapter_rank} or less" if sizes.adapter_slots else "none"


def _settings(manifest: Manifest) -> PageTable:
    from ..pictures.page import PageTable

    rows = tuple((name, readable(value)) for name, value in manifest.provenance.options.items())
    return PageTable("build options", ("option", "value"), rows)


def _programs(manifest: Manifest) -> PageTable:
    from ..artifact.calls import Role
    from ..pictures.page import PageTable

    rows: list[tuple[str, ...]] = []
    for name, signature in manifest.programs.items():
        shared = (str(len(signature.inputs_of(role))) for role in (Role.CACHE, Role.STATE, Role.WEIGHT))
        rows.append((name, _spelled(signature.inputs), *shared, _spelled(signature.outputs)))
    return PageTable("programs", ("name", "inputs", "KV caches", "state", "weights", "outputs"), tuple(rows))


def _spelled(specs: Iterable[TensorSpec]) -> str:
    """Data by name. Of factors, which are hundreds, the number."""
    from ..artifact.calls import Role

    listed = list(specs)
    found = [f"{spec.name} {spec.kind}" for spec in listed if spec.role == Role.DATA]
    factors = sum(spec.role == Role.FACTOR for spec in listed)
    return ", ".join([*found, f"{factors} of LoRA factors"] if factors else found)


def _files(manifest: Manifest) -> PageTable:
    from ..pictures.page import PageTable

    rows = tuple((name, size(spec.bytes), spec.sha256[:_SHOWN_DIGITS]) for name, spec in manifest.files.items())
    return PageTable("files", ("name", "size", "sha256"), rows)
