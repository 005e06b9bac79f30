"""The build backend of the repository's root, which has no distribution: pip says which folders have one.

Without it pip would take the root for a setuptools project and fail with advice about that.
"""

INSTALL = "python -m pip install './core[chat,text,progress]' ./plugins/gguf ./plugins/numba ./plugins/serve"


def refuse(*arguments: object, **options: object) -> None:
    """Say what to install instead."""
    raise SystemExit(f"The root of this checkout is no distribution: its folders are. Install them with\n  {INSTALL}")


get_requires_for_build_wheel = get_requires_for_build_sdist = get_requires_for_build_editable = refuse
build_wheel = build_sdist = build_editable = refuse
