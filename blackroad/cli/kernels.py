"""`blackroad kernels`: what can be computed, with which parameters, on which devices."""

from __future__ import annotations

from typing import Any, Final

import click

from blackroad.cli import output
from blackroad.cli.commands import Command, json_option, session
from blackroad.cli.output import Cell
from blackroad.errors import NoDaemon, Unreachable
from blackroad.units import format_bytes

CONNECT_S: Final = 1.0


@click.command(
    "kernels",
    cls=Command,
    examples=(
        "blackroad kernels",
        "blackroad kernels mandelbrot",
        "blackroad submit --wait --kernel mandelbrot width=800 height=600 -o set.png",
    ),
)
@click.argument("name", required=False)
@json_option
def kernels_command(name: str | None, as_json: bool) -> None:
    """Show the kernels, or the parameters of one; and the nodes' OpenCL devices.

    Every kernel runs on OpenCL devices and in NumPy. Without a daemon the kernels are shown all the
    same.
    """
    from blackroad.kernels import registry

    found = [registry.get(name).describe()] if name else registry.describe()
    nodes, why = _devices()
    if as_json:
        output.print_json({"kernels": found, "nodes": nodes, "note": why})
        return
    if name:
        _print_one(found[0])
    else:
        _print_list(found)
    output.say()
    if nodes is None:
        output.say(f"which nodes have OpenCL devices is not known: {why}")
    else:
        _print_devices(nodes)


def _devices() -> tuple[list[dict[str, Any]] | None, str]:
    """What each living node computes on; None and the reason where no daemon answers."""
    try:
        with session(CONNECT_S) as client:
            rows = client.nodes()["nodes"]
    except (NoDaemon, Unreachable) as error:
        return None, error.message
    return [
        {
            "name": row["name"],
            "id": row["id"],
            "devices": row["devices"],
            "notes": row["notes"],
        }
        for row in rows
        if row["state"] in ("alive", "draining")
    ], ""


def _print_list(found: list[dict[str, Any]]) -> None:
    rows = []
    for one in found:
        names = [
            row["name"] if row["required"] else f"[{row['name']}]" for row in one["parameters"]
        ]
        rows.append(
            (Cell(one["name"], "bold"), Cell(" ".join(names)), Cell(" ".join(one["backends"])))
        )
    output.print_grid(output.Grid(("kernel", "parameters", "backends"), rows))
    output.say()
    for one in found:
        output.say(f"{one['name']}: {one['summary']}")


def _print_one(one: dict[str, Any]) -> None:
    output.say(f"{one['name']}: {one['summary']}")
    output.say()
    rows = [
        (
            Cell(row["name"], "bold"),
            Cell("required" if row["required"] else str(row["default"])),
            Cell(row["allowed"]),
            Cell(row["help"]),
        )
        for row in one["parameters"]
    ]
    output.print_grid(output.Grid(("parameter", "default", "allowed", "what"), rows))
    output.say()
    output.facts([("backends", ", ".join(one["backends"])), ("precision", one["tolerance"])], "")


def _print_devices(nodes: list[dict[str, Any]]) -> None:
    rows = []
    for node in nodes:
        opencl = [device for device in node["devices"] if device["backend"] == "opencl"]
        for device in opencl:
            kind = f"{device['kind']}, software" if device["software"] else device["kind"]
            precision = "float64" if device["fp64"] else "float32"
            size = format_bytes(device["memory_bytes"])
            rows.append(
                tuple(
                    Cell(text)
                    for text in (
                        node["name"],
                        device["name"],
                        kind,
                        size,
                        precision,
                        device["problem"] and f"not used: {device['problem']}",
                    )
                )
            )
        if not opencl:
            rows.append((Cell(node["name"]), Cell("none: NumPy computes"), *(Cell(""),) * 4))
    heads = ("node", "OpenCL device", "kind", "memory", "precision", "")
    output.print_grid(output.Grid(heads, rows).without_empty("", "kind", "memory", "precision"))
    for node in nodes:
        for text in node["notes"]:
            output.say(f"{node['name']}: {text}")
