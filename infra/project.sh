# project.sh FOLDER: make FOLDER a clone of KSHOT_REPOSITORY at KSHOT_REVISION, or bring it there, with the bucket
# KSHOT_S3_BUCKET at KSHOT_S3_ENDPOINT as its default remote; the keys stay in the environment. Exit 1 while a run has the
# folder. What a run changed is not lost: git refuses to write over a file that is neither the old nor the new one.
set -eu
for name in KSHOT_REPOSITORY KSHOT_REVISION KSHOT_S3_BUCKET KSHOT_S3_ENDPOINT; do
  eval "value=\${$name:-}"
  if [ -z "$value" ]; then
    echo "error: found no $name in the environment; need it; next: set it, see docs/guide/production.md" >&2
    exit 2
  fi
done
mkdir -p "$1/.kshot"
cd "$1"
exec 9>>.kshot/flow.lock  # that of kshot.project.lock
if ! flock --nonblock 9; then
  echo "error: a run is going on in $1; need it free; next: wait for it to end, then do this again" >&2
  exit 1
fi
git init --quiet  # and not clone, which refuses a folder that is not empty, such as a new volume
git fetch --quiet "$KSHOT_REPOSITORY" "$KSHOT_REVISION"
git checkout --quiet --detach FETCH_HEAD
dvc remote modify --quiet --local s3 url "s3://$KSHOT_S3_BUCKET"
dvc remote modify --quiet --local s3 endpointurl "$KSHOT_S3_ENDPOINT"
dvc remote default --quiet --local s3
echo "$1 is at $(git log -1 --format='%h %s')"
