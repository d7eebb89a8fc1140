"""The tiny project that tests of DVC run on."""

from tests.dvc_project import checked, checked_template, workspace, workspace_template

__all__ = ["checked", "checked_template", "workspace", "workspace_template"]
