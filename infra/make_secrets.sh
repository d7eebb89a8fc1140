# make_secrets.sh FILE: write new random passwords and keys to FILE, which only its owner may read. Exit 2 where it exists.
set -eu
if [ $# -ne 1 ]; then
  echo "error: found $# arguments; need the file to write; next: sh infra/make_secrets.sh infra/secrets.env" >&2
  exit 2
fi
if [ -e "$1" ]; then
  echo "error: $1 exists, and servers may run with what it holds; need a new name; next: move it away" >&2
  exit 2
fi
umask 077
random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
cat >"$1" <<END
POSTGRES_PASSWORD=$(random 32)
MLFLOW_DATABASE_PASSWORD=$(random 32)
PREFECT_DATABASE_PASSWORD=$(random 32)
MLFLOW_ADMIN_PASSWORD=$(random 32)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(random 32)
PREFECT_AUTH_STRING=kshot:$(random 32)
S3_ACCESS_KEY_ID=$(random 16)
S3_SECRET_ACCESS_KEY=$(random 32)
END
echo "wrote $1"
