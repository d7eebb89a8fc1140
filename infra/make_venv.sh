# make_venv.sh FOLDER [PYTHON]: see that FOLDER holds a working environment of a Python that pyproject.toml allows.
# Run in the project folder. Exit 2 without such a Python.
set -u
folder=$1
shift
range=$(sed -n 's/^requires-python = "\(>=3\.[0-9]*,<3\.[0-9]*\)"$/\1/p' pyproject.toml)
if [ -z "$range" ]; then
  echo "error: found no line requires-python = \">=3.A,<3.B\" in $(pwd)/pyproject.toml; next: git checkout pyproject.toml" >&2
  exit 2
fi
lowest=${range#>=3.}
lowest=${lowest%%,*}
above=${range##*<3.}
fits="import sys; sys.exit(not (3, $lowest) <= sys.version_info[:2] < (3, $above))"

stamp=$(cat "$folder/.ready" 2>/dev/null || pwd -P)
if [ "$stamp" = "$(pwd)" ] || [ "$stamp" = "$(pwd -P)" ]; then
  "$folder/bin/python" -c "$fits" 2>/dev/null && exit 0
fi

if [ $# -gt 0 ]; then
  asked=$1
  candidates=$1
else
  asked=python3
  candidates=python3
  minor=$above
  while [ $((minor -= 1)) -ge "$lowest" ]; do candidates="$candidates python3.$minor"; done
  candidates="$candidates python"
fi
for python in $candidates; do
  if "$python" -c "$fits" >/dev/null 2>&1; then
    echo "making $folder with $(command -v "$python"), $("$python" -V)"
    "$python" -m venv --clear "$folder" && exit 0
    echo "error: $python cannot make an environment; need its venv module; next: on Debian or Ubuntu, apt install python3-venv" >&2
    exit 2
  fi
done
found=$("$asked" -V 2>&1) || found="no $asked"
echo "error: found $found; need Python $range; next: install one, or make setup PYTHON=/path/to/python3.$lowest" >&2
exit 2
