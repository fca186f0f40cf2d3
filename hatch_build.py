"""What the wheel holds beside the library: the app, in one folder with a name of its own.

`viz`, `ui`, `pages` and `app` are names that another project could own, so none of them stands in site-packages by itself.
Streamlit puts the folder of the script that it runs on the path, and there they are found under the names of the clone.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

APP = ("app.py", "pages", "ui", "viz", ".streamlit/config.toml")


class AppHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":  # an editable installation runs the app from the clone
            build_data["force_include"].update({part: f"sparselens_app/{part}" for part in APP})
