"""The stages of the pipeline: read, call the library, write under artifacts/NAME.

A stage has one name: its module here, its key in dvc.yaml, its section in params.yaml, its folder under
artifacts/ and its task in the flow.
"""
