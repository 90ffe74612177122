"""gptoss-export inspect"""

from __future__ import annotations

from pathlib import Path

import click

from .output import artifact_argument, check_parent, json_option, print_json, print_table, reports_errors, size


@click.command("inspect")
@artifact_argument
@click.option("--html", type=click.Path(path_type=Path), help="Also write the tables as a page.")
@json_option
@reports_errors
def command(artifact: Path, html, as_json) -> None:
    """Tell what is in ARTIFACT, from its manifest; opens no compiled code and no weights."""
    from ..artifact.manifest import check_files, load_manifest
    from ..targets import TARGETS

    check_parent("--html", html)
    manifest = load_manifest(artifact)
    check_files(manifest, artifact)
    tables = TARGETS[manifest.target].tables(manifest, artifact) if manifest.target in TARGETS else []
    if as_json:
        rows = {table.title: [dict(zip(table.headings, row, strict=True)) for row in table.rows] for table in tables}
        print_json(manifest.to_json() | {"tables": rows})
    if html is not None or not as_json:
        print_table(*_tables(manifest, tables), html=html, quiet=as_json)


def _tables(manifest, more):
    from rich.table import Table

    model, origin = manifest.model, manifest.provenance
    about = Table(title="artifact", show_header=False)
    for key, value in {
        "target": f"{manifest.target} for {manifest.device} ({manifest.arch}), {manifest.dtype}",
        "built from": manifest.source,
        "built on": f"{origin.system} {origin.machine}, {origin.gpu or 'no GPU'}",
        "built with": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "kernels cut by": "\n".join(
            f"{arch}: {'; '.join(tables) or 'their own guess'}" for arch, tables in origin.kernels.items()
        ) or "no table",
        "model": f"{model.num_hidden_layers} layers, hidden {model.hidden_size}, {model.num_attention_heads} heads "
                 f"({model.num_key_value_heads} kv) of {model.head_dim}, {model.num_local_experts} experts "
                 f"(top {model.num_experts_per_tok}), vocabulary {model.vocab_size}",
        "window": f"{model.sliding_window} on {model.layer_types.count('sliding_attention')} layers",
        "sequences": f"{manifest.max_batch} of up to {manifest.max_context} tokens",
        "stop tokens": ", ".join(map(str, manifest.stop_tokens)) or "none",
    }.items():  # fmt: skip
        about.add_row(key, value)
    programs = Table(title="programs")
    for heading in ("name", "inputs", "caches", "weights", "outputs"):
        programs.add_column(heading)
    for name, spec in manifest.programs.items():
        roles = [item.role for item in spec.inputs]
        data = [f"{item.name} {item.dtype} {list(item.shape)}" for item in spec.inputs if item.role == "data"]
        outputs = [f"{item.name} {item.dtype} {list(item.shape)}" for item in spec.outputs]
        caches, weights = str(roles.count("cache")), str(roles.count("weight"))
        programs.add_row(name, ", ".join(data), caches, weights, ", ".join(outputs))
    files = Table(title="files")
    for heading in ("name", "size", "sha256"):
        files.add_column(heading)
    for name, spec in manifest.files.items():
        files.add_row(name, size(spec.bytes), spec.sha256[:16])
    return about, programs, *map(_rich, more), files


def _rich(table):
    from rich.table import Table

    made = Table(*table.headings, title=table.title)
    for row in table.rows:
        made.add_row(*row)
    return made
