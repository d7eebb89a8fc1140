"""The production stack as processes of this machine: make stack, make stack-demo, make stack-down.

PostgreSQL, an S3 server, MLflow, Prefect and a worker, each under supervisord, on this machine's own address only.
"""
