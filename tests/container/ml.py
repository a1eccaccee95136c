"""What an /opt/ml holds."""

import json


def write_config(root, **files):
    """Write files of input/config: a string as it is, anything else as JSON."""
    for name, value in files.items():
        path = root / "input" / "config" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))


def base_model(folder):
    """Write a folder that passes for a base model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder
