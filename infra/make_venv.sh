# make_venv.sh FOLDER [PYTHON]: see that FOLDER holds a working environment of Python 3.11 to 3.14. Exit 2 without one.
set -u
folder=$1
shift
fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))'

stamp=$(cat "$folder/.ready" 2>/dev/null || pwd -P)
if [ "$stamp" = "$(pwd)" ] || [ "$stamp" = "$(pwd -P)" ]; then
  "$folder/bin/python" -c "$fits" 2>/dev/null && exit 0
fi

if [ $# -gt 0 ]; then asked=$1; candidates=$1; else asked=python3; candidates='python3 python3.14 python3.13 python3.12 python3.11 python'; fi
for python in $candidates; do
  if "$python" -c "$fits" >/dev/null 2>&1; then
    echo "making $folder with $(command -v "$python"), $("$python" -V)"
    "$python" -m venv --clear "$folder" && exit 0
    echo "error: $python cannot make an environment; need its venv module; next: on Debian or Ubuntu, apt install python3-venv" >&2
    exit 2
  fi
done
found=$("$asked" -V 2>&1) || found="no $asked"
echo "error: found $found; need Python 3.11 to 3.14; next: install one, or make setup PYTHON=/path/to/python3.12" >&2
exit 2
