"""Rows of the tidy table, made by hand."""

from __future__ import annotations

import pandas as pd

NAN = float("nan")
CATEGORIES = ("run", "dataset", "method", "partition", "topology", "commit", "metric", "part")
DEFAULTS = {
    "experiment": "comparison",
    "setting": "default",
    "level": NAN,
    "run": "",
    "dataset": "watch",
    "method": "dmml",
    "seed": 0,
    "budget_fraction": NAN,
    "partition": "dirichlet",
    "dirichlet_alpha": 0.5,
    "missing_rate": 0.6,
    "num_devices": 2,
    "topology": "ring",
    "link_failure": 0.0,
    "device_failure": 0.0,
    "learning_rate": 0.05,
    "own_parameter": NAN,
    "rounds": 2,
    "local_iterations": 10,
    "commit": "c0ffee",
    "round": 2,
    "metric": "accuracy",
    "part": "test",
    "device": None,
    "value": 0.0,
}


def table_of(rows: list[dict]) -> pd.DataFrame:
    """Return a tidy table of rows, with defaults for the columns that a row does not name."""
    full = []
    for row in rows:
        known = {**DEFAULTS, **row}
        known["run"] = known["run"] or "-".join(str(known[name]) for name in ("dataset", "method", "seed", "level"))
        full.append(known)
    table = pd.DataFrame(full, columns=list(DEFAULTS))
    table["device"] = table["device"].astype("Int32")
    for name in CATEGORIES:
        table[name] = table[name].astype("category")
    return table


def finals(values: dict[tuple, float], device: int = 0, **about: object) -> list[dict]:
    """Return rows of final test accuracy: (method, seed) or (method, seed, level) -> value of one device."""
    return [
        {**about, "method": key[0], "seed": key[1], **({"level": key[2]} if len(key) > 2 else {})}
        | {"device": device, "value": value}
        for key, value in values.items()
    ]


def make_table(values: dict[tuple[str, int], list[list[float]]], setting: str = "moderate") -> pd.DataFrame:
    """Return the table of runs: (method, seed) -> the devices' test accuracy in each evaluated round."""
    return table_of(
        [
            {
                "run": f"watch-{method}-{seed}-{setting}",
                "method": method,
                "seed": seed,
                "setting": setting,
                "rounds": len(rounds),
                "round": index,
                "device": device,
                "value": value,
            }
            for (method, seed), rounds in values.items()
            for index, devices in enumerate(rounds, start=1)
            for device, value in enumerate(devices)
        ]
    )


def example_table() -> pd.DataFrame:
    """Return two methods with three seeds of two rounds and two devices, in two settings."""
    moderate = {
        ("dmml", 0): [[0.1, 0.3], [0.5, 0.7]],
        ("dmml", 1): [[0.2, 0.4], [0.4, 0.6]],
        ("dmml", 2): [[0.3, 0.5], [0.6, 0.8]],
        ("dmml-kd", 0): [[0.2, 0.4], [0.6, 0.8]],
        ("dmml-kd", 1): [[0.2, 0.4], [0.6, 0.8]],
        ("dmml-kd", 2): [[0.2, 0.4], [0.7, 0.9]],
    }
    severe = {key: [[value / 2 for value in row] for row in rounds] for key, rounds in moderate.items()}
    return pd.concat([make_table(moderate), make_table(severe, "severe")], ignore_index=True)
